"""Hugging Face folders with the golden weights, written by the safetensors library alone."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from data.tokenizer import SPECIALS
from models import MODELS, parameters

GOLDEN = Path(__file__).parent.parent / "golden"


@dataclasses.dataclass
class Foreign:
    """A folder of transformers', before it is written: a test changes what it is about."""

    folder: Path
    about: dict[str, Any]  # config.json
    weights: dict[str, np.ndarray]
    golden: dict[str, np.ndarray]

    def write(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.about))
        words = [*SPECIALS, *(f"w{i}" for i in range(self.about["vocab_size"] - len(SPECIALS)))]
        (self.folder / "vocab.txt").write_text("\n".join(words) + "\n")
        (self.folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        whole = {name: np.ascontiguousarray(array) for name, array in self.weights.items()}
        save_file(whole, self.folder / "model.safetensors", metadata={"format": "pt"})
        return self.folder

    def batch(self) -> dict[str, np.ndarray]:
        """The golden inputs as our models take them."""
        ids = self.golden["input_ids"]
        return {
            "tokens": ids,
            "token_types": self.golden["token_type_ids"],
            "segment_ids": self.golden["attention_mask"],
            "positions": np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape),
        }


@functools.cache
def _golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def _foreign(folder: Path, name: str, heads: int, **about: Any) -> Foreign:
    golden = _golden(name)
    weights = {key.removeprefix("weights/"): golden[key] for key in golden if key.startswith("weights/")}
    sizes = {
        "model_type": name,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": 64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 24,
    }
    return Foreign(folder, sizes | about, weights, golden)


@pytest.fixture
def bert(tmp_path) -> Foreign:
    """bert.npz: BertForMaskedLM with a pooler."""
    return _foreign(tmp_path / "bert", "bert", 4, vocab_size=96, architectures=["BertForMaskedLM"])


@pytest.fixture
def roformer(tmp_path) -> Foreign:
    """roformer.npz: the classification head of RoFormer, and its masked language model's."""
    names = {"0": "bad", "1": "middling", "2": "good"}
    architectures = ["RoFormerForSequenceClassification"]
    return _foreign(tmp_path / "roformer", "roformer", 4, vocab_size=48, architectures=architectures, id2label=names)


@pytest.fixture
def classifier(bert) -> Foreign:
    """The weights of bert.npz with a classification head of two labels."""
    draw = np.random.default_rng(4)
    bert.weights = {name: array for name, array in bert.weights.items() if not name.startswith("cls.")}
    bert.weights["classifier.weight"] = draw.normal(size=(2, 32)).astype(np.float32)
    bert.weights["classifier.bias"] = draw.normal(size=2).astype(np.float32)
    bert.about |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    return bert


@functools.cache
def _structure(head: str, fields: tuple[tuple[str, Any], ...]) -> tuple:
    """Graph, shapes and state of one of our modules; tracing it takes most of a test's time."""
    config = MODELS["bert"].config(**dict(fields))
    return parameters.structure(lambda rngs: MODELS["bert"].heads[head](config, rngs))


@pytest.fixture
def build() -> Callable[..., Any]:
    """`build(head, model, params)`: one of our modules with these parameters by path."""

    def built(head: str, model: dict[str, Any], params: dict[str, np.ndarray]) -> Any:
        graphdef, structure, state = _structure(head, tuple(sorted(model.items())))
        assert parameters.flatten(structure).keys() <= params.keys()
        arrays = {path: jnp.asarray(array) for path, array in params.items()}
        return nnx.merge(graphdef, parameters.graft(structure, arrays), state)

    return built


@pytest.fixture
def drawn() -> Callable[..., dict[str, np.ndarray]]:
    """`drawn(head, model)`: random parameters by path; three labels."""

    def draw(head: str, model: dict[str, Any]) -> dict[str, np.ndarray]:
        structure = parameters.flatten(_structure(head, (*sorted(model.items()), ("num_labels", 3)))[1])
        normal = np.random.default_rng(5).normal
        return {path: normal(size=leaf.shape).astype(np.float32) for path, leaf in structure.items()}

    return draw
