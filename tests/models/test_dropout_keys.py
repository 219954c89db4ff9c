"""Every dropout of a training pass draws from a key of its own, in every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import layers
from models.bert import BertConfig, BertForMaskedLM
from models.cnn import CnnConfig, CnnForImageClassification
from models.gpt import GptConfig, GptForCausalLM
from models.mlp import MlpConfig, MlpForSequenceClassification
from models.seq2seq import Seq2Seq, Seq2SeqConfig
from models.vit import ViT, ViTConfig

KEY, ONES = jax.random.key(3), jnp.ones((2, 8), jnp.int32)
SIZES = {"num_layers": 3, "hidden_size": 16, "num_heads": 2, "dropout": 0.1, "attention_dropout": 0.1}
WORDS = {**SIZES, "vocab_size": 32, "max_positions": 8}
TEXT = {"tokens": ONES, "segment_ids": ONES, "positions": jnp.tile(jnp.arange(8), (2, 1))}
PAIRS = {f"{side}_{name}": value for side in ("source", "target") for name, value in TEXT.items()}
PICTURES = jnp.ones((2, 8, 8, 3))


def bert(**more) -> None:
    BertForMaskedLM(BertConfig(**WORDS, **more), nnx.Rngs(0)).hidden_states(TEXT, KEY)


def gpt() -> None:
    GptForCausalLM(GptConfig(**WORDS), nnx.Rngs(0)).hidden_states(TEXT, KEY)


def seq2seq() -> None:
    Seq2Seq(Seq2SeqConfig(**WORDS), nnx.Rngs(0)).hidden_states(PAIRS, KEY)


def vit() -> None:
    sizes = {"image_size": 8, "patch_size": 4, "channels": 3, "stochastic_depth": 0.2}
    ViT(ViTConfig(**SIZES, **sizes), nnx.Rngs(0)).hidden_states(PICTURES, KEY)


def mlp() -> None:
    config = MlpConfig(num_layers=3, hidden_size=16, vocab_size=32, num_labels=2, dropout=0.1)
    MlpForSequenceClassification(config, nnx.Rngs(0))(TEXT, jnp.zeros((2, 1), jnp.int32), KEY)


def cnn() -> None:
    config = CnnConfig(num_layers=3, hidden_size=16, image_size=8, channels=3, num_labels=2, dropout=0.1)
    CnnForImageClassification(config, nnx.Rngs(0))(PICTURES, KEY)


@pytest.mark.parametrize(
    ("run", "places"),
    [
        (bert, 1 + 3 * 3),
        (lambda: bert(scan=True), 1 + 3 * 3),
        (gpt, 1 + 3 * 3),
        (seq2seq, 2 + 3 * 3 + 3 * 5),
        (vit, 1 + 3 * 3 + 2 * 2),  # the first layer is never passed over
        (mlp, 1 + 3 + 0),
        (cnn, 2 + 1),
    ],
    ids=["bert", "bert in a loop", "gpt", "seq2seq", "vit", "mlp", "cnn"],
)
def test_no_two_dropouts_share_a_key(monkeypatch, run, places):
    drawn, own = [], layers._dropout

    def recording(x, seeds, rate):
        jax.debug.callback(lambda seeds: drawn.append(tuple(np.asarray(seeds))), seeds)
        return own(x, seeds, rate)

    monkeypatch.setattr(layers, "_dropout", recording)
    run()
    jax.effects_barrier()
    assert len(drawn) == places and len(set(drawn)) == places
