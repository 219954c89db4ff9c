import jax
import numpy as np
import pytest

from errors import UserError
from models import parameters
from models.bert import BertConfig, BertForSequenceClassification
from models.lora import Lora

CONFIG = BertConfig(num_layers=2, hidden_size=32, num_heads=2, vocab_size=64, max_positions=16, num_labels=3)
BATCH = {
    "tokens": np.arange(32, dtype=np.int32).reshape(2, 16),
    "segment_ids": np.ones((2, 16), np.int32),
    "positions": np.tile(np.arange(16, dtype=np.int32), (2, 1)),
}
FIRST = np.zeros((2, 1), np.int32)


def build(rngs):
    return BertForSequenceClassification(CONFIG, rngs)


@pytest.fixture(scope="module")
def model():
    graphdef, _, _ = parameters.structure(build)
    return graphdef, parameters.initialize(build, jax.random.key(0))[0]


def logits(graphdef, params, lora):
    forward = parameters.functional(graphdef, lambda model, batch, key: model(batch, FIRST, key), lora)
    return forward(params, {}, BATCH, None)[0]


def test_fresh_adapters_change_nothing(model):
    graphdef, params = model
    lora = Lora(rank=4)
    adapted = lora.add(params, jax.random.key(1))
    np.testing.assert_array_equal(logits(graphdef, adapted, lora), logits(graphdef, params, Lora()))


def test_the_merged_kernel_is_the_kernel_and_the_scaled_product(model):
    _, params = model
    lora = Lora(rank=4, alpha=8.0)
    adapted = lora.add(params, jax.random.key(1))
    adapters = adapted["lora"]["encoder"]["layers"]["1"]["attention"]["query"]["kernel"]
    adapters["b"] = jax.random.normal(jax.random.key(2), adapters["b"].shape)
    merged = lora.merge(adapted)
    assert "lora" not in merged and jax.tree.structure(merged) == jax.tree.structure(params)
    kernel = params["encoder"]["layers"]["1"]["attention"]["query"]["kernel"]
    expected = np.asarray(kernel) + 2.0 * np.asarray(adapters["a"]) @ np.asarray(adapters["b"])
    found = merged["encoder"]["layers"]["1"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    untouched = merged["encoder"]["layers"]["0"]["attention"]["key"]["kernel"]
    np.testing.assert_array_equal(untouched, params["encoder"]["layers"]["0"]["attention"]["key"]["kernel"])


def test_only_the_chosen_kernels_have_adapters_and_they_are_small(model):
    _, params = model
    adapted = Lora(rank=2, kernels="encoder/layers/1/mlp/.*/kernel").add(params, jax.random.key(1))["lora"]
    assert list(parameters.flatten(adapted)) == [
        f"encoder/layers/1/mlp/{name}/kernel/{part}" for name in ("down", "up") for part in ("a", "b")
    ]
    assert parameters.count(adapted) == 2 * 2 * (32 + 128)


def test_without_a_rank_there_is_nothing(model):
    _, params = model
    assert Lora().add(params, jax.random.key(1)) is params and Lora().merge(params) is params


@pytest.mark.parametrize("kernels", ["decoder/.*", "encoder/.*", "("])
def test_a_pattern_that_names_no_kernels_alone_is_refused(model, kernels):
    with pytest.raises(UserError, match="config.lora.kernels"):
        Lora(rank=2, kernels=kernels).add(model[1], jax.random.key(0))
