"""Computing a layer's inside anew on the way back: the same numbers in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from errors import UserError
from models import parameters
from models.bert import BertConfig, BertForMaskedLM

BATCH = {
    "tokens": jnp.arange(8 * 64).reshape(8, 64) % 90,
    "segment_ids": jnp.ones((8, 64), jnp.int32),
    "positions": jnp.tile(jnp.arange(64), (8, 1)),
}


def make(remat: str):
    config = BertConfig(num_layers=6, hidden_size=64, num_heads=4, vocab_size=96, max_positions=64, remat=remat)
    graphdef, _, _ = parameters.structure(lambda rngs: BertForMaskedLM(config, rngs))
    params, model_state = parameters.initialize(lambda rngs: BertForMaskedLM(config, rngs), jax.random.key(0))

    def loss(params, key):
        model = nnx.merge(graphdef, params, model_state)
        return jnp.square(model.hidden_states(BATCH, key)[-1] - 1).mean()

    return jax.jit(jax.value_and_grad(loss)), params


@pytest.fixture(scope="module")
def found():
    """Of each choice the loss, the gradient and the bytes that the program needs within a step."""
    found = {}
    for remat in ("none", "dots", "full"):
        function, params = make(remat)
        # jax 0.10's usual scheduler for CPUs does at once what it can, and so needs the memory all the same.
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        compiled = function.lower(params, jax.random.key(1)).compile(options)
        loss, gradient = compiled(params, jax.random.key(1))
        found[remat] = loss, gradient, compiled.memory_analysis().temp_size_in_bytes
    return found


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_loss_and_gradient_are_the_same_with_dropout(found, remat):
    np.testing.assert_allclose(found[remat][0], found["none"][0], rtol=1e-6)
    for ours, plain in zip(jax.tree.leaves(found[remat][1]), jax.tree.leaves(found["none"][1]), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-7)


def test_less_is_kept_when_it_is_computed_anew(found):
    none, dots, full = (found[remat][2] for remat in ("none", "dots", "full"))
    assert full < 0.85 * none and dots < 0.85 * none, (none, dots, full)


def test_another_word_is_refused():
    with pytest.raises(UserError, match="config.model.remat: 'some'"):
        BertConfig(remat="some")
