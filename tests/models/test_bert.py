"""BERT against transformers' own numbers (tests/golden/make_bert.py), and the promises of its options."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import MODELS, parameters
from models.bert import Bert, BertConfig, BertForMaskedLM
from models.transformer import encoder_flops
from training.rules import paths

GOLDEN = dict(np.load(Path(__file__).parent.parent / "golden" / "bert.npz"))
SIZES = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "vocab_size": 96}
CONFIG = BertConfig(**SIZES, max_positions=24, dropout=0.0, attention_dropout=0.0, pooler=True)

# Our path -> Hugging Face's name. Kernels are transposed there.
NAMES = {
    "embeddings/word/embedding": "bert.embeddings.word_embeddings.weight",
    "embeddings/position/embedding": "bert.embeddings.position_embeddings.weight",
    "embeddings/token_type/embedding": "bert.embeddings.token_type_embeddings.weight",
    "embeddings/norm": "bert.embeddings.LayerNorm",
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
    "pooler": "bert.pooler.dense",
    "mlm_head/transform": "cls.predictions.transform.dense",
    "mlm_head/norm": "cls.predictions.transform.LayerNorm",
    "mlm_head/bias": "cls.predictions.bias",
}


def golden(path: str, kind: str = "weights") -> np.ndarray:
    """Transformers' array for one of our parameters."""
    if path in NAMES:
        return GOLDEN[f"{kind}/{NAMES[path]}"]
    module, _, leaf = path.rpartition("/")
    prefix = ""
    if module.startswith("encoder/layers/"):
        _, _, number, module = module.split("/", 3)
        prefix = f"bert.encoder.layer.{number}."
    array = GOLDEN[f"{kind}/{prefix}{NAMES[module]}.{'bias' if leaf == 'bias' else 'weight'}"]
    return array.T if leaf == "kernel" else array


@pytest.fixture(scope="module")
def loaded():
    """graphdef, parameters and model state with transformers' weights."""
    graphdef, params, model_state = parameters.structure(lambda rngs: BertForMaskedLM(CONFIG, rngs))
    arrays = [jnp.asarray(golden(path)) for path in paths(params)]
    assert [a.shape for a in arrays] == [leaf.shape for leaf in jax.tree.leaves(params)]
    assert len(arrays) == sum(name.startswith("weights/") for name in GOLDEN), "no parameter is left over"
    return graphdef, jax.tree.unflatten(jax.tree.structure(params), arrays), model_state


@pytest.fixture(scope="module")
def model(loaded):
    return nnx.merge(*loaded)


def inputs() -> dict[str, np.ndarray]:
    length = GOLDEN["input_ids"].shape[1]
    return {
        "tokens": GOLDEN["input_ids"],
        "token_types": GOLDEN["token_type_ids"],
        "segment_ids": GOLDEN["attention_mask"],
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), GOLDEN["input_ids"].shape),
    }


def everywhere(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)


def assert_close(ours, theirs, tolerance=1e-5):
    """Within `tolerance` of the largest magnitude: float32 sums in another order differ in their last digits."""
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * scale)


def test_every_hidden_state_is_that_of_transformers(model):
    text = GOLDEN["attention_mask"] > 0
    states = model.hidden_states(inputs())
    assert len(states) == len(GOLDEN["hidden_states"]) == 3
    for ours, theirs in zip(states, GOLDEN["hidden_states"], strict=True):
        assert_close(np.asarray(ours)[text], theirs[text])
    assert_close(model.pooled(states[-1][:, 0]), GOLDEN["pooler_output"])


def test_logits_and_loss_are_those_of_transformers(model):
    logits = np.asarray(model(inputs(), everywhere(GOLDEN["input_ids"]), 96))
    text = GOLDEN["attention_mask"] > 0
    assert_close(logits[text], GOLDEN["logits"][text])
    labelled = GOLDEN["labels"] >= 0
    log_probabilities = jax.nn.log_softmax(logits[labelled])
    loss = -np.mean(log_probabilities[np.arange(labelled.sum()), GOLDEN["labels"][labelled]])
    assert loss == pytest.approx(float(GOLDEN["loss"]), rel=1e-5)


def test_the_gradient_of_every_parameter_is_that_of_transformers(loaded):
    graphdef, params, model_state = loaded
    labelled = GOLDEN["labels"] >= 0

    def loss(params):
        model = nnx.merge(graphdef, params, model_state)
        labels = np.maximum(GOLDEN["labels"], 0)
        losses, _ = model.cross_entropy(inputs(), everywhere(GOLDEN["input_ids"]), labels, 96)
        return (losses * labelled).sum() / labelled.sum()

    assert float(jax.jit(loss)(params)) == pytest.approx(float(GOLDEN["loss"]), rel=1e-5)
    gradients = jax.jit(jax.grad(loss))(params)
    largest = max(np.abs(golden(path, "grads")).max() for path in paths(gradients))
    for path, ours in zip(paths(gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(ours, golden(path, "grads"), rtol=1e-4, atol=1e-5 * max(largest, 1.0), err_msg=path)


def test_logits_at_chosen_places_are_those_of_all_places(model):
    everything = np.asarray(model(inputs(), everywhere(GOLDEN["input_ids"]), 96))
    chosen = np.array([[5, 0, 23], [1, 16, 3], [8, 8, 2]], np.int32)
    some = np.asarray(model(inputs(), chosen, 96))
    np.testing.assert_allclose(some, np.take_along_axis(everything, chosen[..., None], 1), rtol=1e-5, atol=1e-5)


def small(**changes) -> BertForMaskedLM:
    fields = SIZES | {"max_positions": 16, "dropout": 0.1, "attention_dropout": 0.1} | changes
    return BertForMaskedLM(BertConfig(**fields, initializer_range=0.3), nnx.Rngs(1))


OPTIONS = [
    {"norm": norm, "position": position} for norm in ("post", "pre") for position in ("learned", "sinusoidal", "rope")
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
def test_packed_documents_do_not_see_each_other(options):
    model = small(**options)
    draw = np.random.default_rng(0)
    texts = [draw.integers(5, 96, n).astype(np.int32) for n in (7, 4, 3)]
    packed = {
        "tokens": np.concatenate([*texts, [0, 0]])[None].astype(np.int32),
        "segment_ids": np.repeat([1, 2, 3, 0], [7, 4, 3, 2])[None].astype(np.int32),
        "positions": np.concatenate([np.arange(7), np.arange(4), np.arange(3), [0, 0]])[None].astype(np.int32),
    }
    call = jax.jit(lambda model, batch: model(batch, everywhere(batch["tokens"]), 96))
    together = np.asarray(call(model, packed))[0]
    begin = 0
    for text in texts:
        alone = {
            "tokens": text[None],
            "segment_ids": np.ones((1, len(text)), np.int32),
            "positions": everywhere(text[None]),
        }
        logits = np.asarray(call(model, alone))[0]
        np.testing.assert_allclose(together[begin : begin + len(text)], logits, rtol=1e-5, atol=1e-5)
        begin += len(text)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope"])
def test_every_kind_of_position_tells_the_order_of_words(position):
    model = small(position=position)
    tokens = np.array([[2, 9, 7, 11, 3]], np.int32)
    batch = {"segment_ids": np.ones_like(tokens), "positions": everywhere(tokens)}
    one = np.asarray(model(batch | {"tokens": tokens}, np.array([[0]]), 96))
    other = np.asarray(model(batch | {"tokens": tokens[:, [0, 3, 2, 1, 4]]}, np.array([[0]]), 96))
    assert np.abs(one - other).max() > 1e-3


def test_rotary_positions_tell_distances_alone():
    model = small(position="rope")
    tokens = np.array([[2, 9, 7, 11, 3]], np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    one, moved = (
        np.asarray(model(batch | {"positions": everywhere(tokens) + by}, everywhere(tokens), 96)) for by in (0, 9)
    )
    np.testing.assert_allclose(one, moved, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_parameters():
    fields = BertConfig(**SIZES, max_positions=16, dropout=0.0, attention_dropout=0.0)
    wide, narrow = (BertForMaskedLM(fields, nnx.Rngs(1), dtype) for dtype in ("float32", "bfloat16"))
    tokens = np.random.default_rng(0).integers(5, 96, (4, 16)).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": everywhere(tokens)}
    one, other = (model(batch, everywhere(tokens), 96) for model in (wide, narrow))
    assert one.dtype == other.dtype == jnp.float32, "logits are float32, so that the loss is"
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters.split(narrow)[1]))
    np.testing.assert_allclose(one, other, atol=0.02)
    assert narrow.hidden_states(batch)[-1].dtype == jnp.bfloat16


def test_dropout_follows_the_key_and_is_off_without_one():
    model = small()
    tokens = np.random.default_rng(0).integers(5, 96, (2, 16)).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": everywhere(tokens)}

    def run(key):
        return np.asarray(model.hidden_states(batch, key)[-1])

    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert np.abs(run(jax.random.key(1)) - run(jax.random.key(2))).max() > 1e-3
    np.testing.assert_array_equal(run(None), run(None))


def test_the_names_of_the_parameters_are_the_projects_one_language():
    _, params, _ = parameters.structure(lambda rngs: BertForMaskedLM(CONFIG, rngs))
    names = paths(params)
    assert "encoder/layers/1/attention/query/kernel" in names and "embeddings/word/embedding" in names
    _, backbone, _ = parameters.structure(lambda rngs: Bert(CONFIG, rngs))
    assert set(paths(backbone)) == {name for name in names if not name.startswith("mlm_head/")}


def test_initial_weights_have_the_deviation_of_the_paper():
    _, params, _ = parameters.split(BertForMaskedLM(BertConfig(vocab_size=2048, max_positions=128), nnx.Rngs(0)))
    for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True):
        if path.endswith(("kernel", "word/embedding")):
            # A normal distribution of deviation 0.02 that is cut at two deviations has 0.0176; its kin are scaled back.
            assert 0.017 < float(leaf.std()) < 0.0205, path
        elif path.endswith("bias"):
            assert not leaf.any(), path
        elif path.endswith("scale"):
            assert (leaf == 1).all(), path


def test_needed_operations_are_counted_as_by_the_compiler():
    """Without element-wise work: a wide model, so that products are nearly all of it."""
    config = BertConfig(num_layers=2, hidden_size=256, vocab_size=512, max_positions=64, dropout=0, attention_dropout=0)
    model = BertForMaskedLM(config, nnx.Rngs(0))
    tokens = np.ones((1, 64), np.int32)
    batch = {"tokens": tokens, "segment_ids": tokens, "positions": everywhere(tokens)}
    graphdef, params, model_state = parameters.split(model)
    lowered = jax.jit(lambda p: nnx.merge(graphdef, p, model_state)(batch, everywhere(tokens)[:, :10], 512)).lower(
        params
    )
    counted = lowered.compile().cost_analysis()["flops"]
    assert BertForMaskedLM.flops(config, 64, 10) == pytest.approx(counted, rel=0.05)
    assert encoder_flops(config, 64) < counted


def test_the_registry_knows_the_family():
    assert MODELS["bert"].config is BertConfig and MODELS["bert"].heads["mlm"] is BertForMaskedLM
