"""ResNet against transformers' own numbers (tests/golden/make_resnet.py), its parts against loops and XLA's own."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from errors import UserError
from models import parameters
from models.convolution import BatchNorm, convolution
from models.resnet import ResNet, ResNetConfig, ResNetForImageClassification
from training.rules import paths

ROOT = Path(__file__).parent.parent.parent
GOLDEN = dict(np.load(ROOT / "tests" / "golden" / "resnet.npz"))
COMMON = {"widths": (8, 16), "stem": "7x7", "stem_width": 8, "channels": 3, "image_size": 26, "num_labels": 5}
CONFIGS = {
    "basic": ResNetConfig(depths=(1, 2), block="basic", **COMMON),
    "bottleneck": ResNetConfig(depths=(2, 1), block="bottleneck", downsample_in_bottleneck=True, **COMMON),
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def theirs(path: str) -> str:
    """Hugging Face's name of one of our parameters or statistics."""
    module, _, leaf = path.rpartition("/")
    if module == "classifier":
        return f"classifier.1.{LEAVES[leaf]}"
    if module.startswith("embeddings/"):
        module = module.replace("embeddings/", "embedder.embedder.")
    else:
        words = module.split("/")  # encoder stages S layers L convolutions K, or … shortcut convolution
        if words[5] != "shortcut":
            words[5:] = ["layer", words[6], words[5].removesuffix("s")]
        module = ".".join(words)
    return f"resnet.{module.replace('norm', 'normalization')}.{LEAVES[leaf]}"


def golden(kind: str, path: str) -> np.ndarray:
    """Transformers' array for one of our leaves; `kind` is where it stands, `basic/weights`."""
    array = GOLDEN[f"{kind}/{theirs(path)}"]
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request):
    """The model's name, graphdef, parameters and statistics with transformers' weights."""
    name, config = request.param, CONFIGS[request.param]
    graphdef, *trees = parameters.structure(lambda rngs: ResNetForImageClassification(config, rngs))
    filled = []
    for kind, tree in zip(("weights", "statistics"), trees, strict=True):
        arrays = [jnp.asarray(golden(f"{name}/{kind}", path)) for path in paths(tree)]
        assert [a.shape for a in arrays] == [leaf.shape for leaf in jax.tree.leaves(tree)]
        assert len(arrays) == sum(key.startswith(f"{name}/{kind}/") for key in GOLDEN), "none is left over"
        filled.append(jax.tree.unflatten(jax.tree.structure(tree), arrays))
    return name, graphdef, *filled


def assert_close(ours, theirs, tolerance=1e-5, **options):
    """Within `tolerance` of the largest magnitude: float32 sums in another order differ in their last digits."""
    scale = max(np.abs(theirs).max(), 1e-3)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance * scale, **options)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_hidden_states_and_logits_are_those_of_transformers(loaded, mode):
    name, graphdef, params, statistics = loaded

    def run(params, key):
        # Two models: a second call in training would begin from the first one's running statistics.
        one, other = (nnx.merge(graphdef, params, statistics) for _ in range(2))
        return one.hidden_states(nhwc(GOLDEN["pixel_values"]), key), other(nhwc(GOLDEN["pixel_values"]), key)

    states, logits = jax.jit(run)(params, jax.random.key(0) if mode == "train" else None)
    assert len(states) == 3
    for place, state in enumerate(states):
        assert_close(state, nhwc(GOLDEN[f"{name}/{mode}/hidden_states/{place}"]))
    assert_close(logits, GOLDEN[f"{name}/{mode}/logits"])


def test_gradients_and_new_running_statistics_are_those_of_transformers(loaded):
    name, graphdef, params, statistics = loaded
    labels = GOLDEN["labels"]

    def loss(model, images, key):
        chosen = jax.nn.log_softmax(model(images, key))[np.arange(len(labels)), labels]
        return -chosen.mean()

    forward = parameters.functional(graphdef, loss)
    step = jax.jit(jax.value_and_grad(forward, has_aux=True))
    (value, new), gradients = step(params, statistics, nhwc(GOLDEN["pixel_values"]), jax.random.key(0))
    assert float(value) == pytest.approx(float(GOLDEN[f"{name}/train/loss"]), rel=1e-5)
    for kind, tree in (("grads", gradients), ("statistics", new)):
        for path, ours in zip(paths(tree), jax.tree.leaves(tree), strict=True):
            np.testing.assert_allclose(
                ours, golden(f"{name}/train/{kind}", path), rtol=1e-4, atol=2e-6, err_msg=f"{kind} {path}"
            )
