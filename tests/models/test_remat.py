"""Computing a layer's inside anew on the way back, and one program for all layers: the same numbers."""

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


def make(remat: str = "none", scan: bool = False, places=None, layers: int = 6):
    config = BertConfig(
        num_layers=6, hidden_size=64, num_heads=4, vocab_size=96, max_positions=64, remat=remat, scan=scan
    )
    graphdef, _, _ = parameters.structure(lambda rngs: BertForMaskedLM(config, rngs))
    params, model_state = parameters.initialize(lambda rngs: BertForMaskedLM(config, rngs), jax.random.key(0))

    def loss(params, key):
        model = nnx.merge(graphdef, params, model_state)
        return jnp.square(model.hidden_states(BATCH, key, places)[-1] - 1).mean()

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


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("places", [None, jnp.tile(jnp.array([0, 9]), (8, 1))], ids=["all", "some places"])
def test_layers_in_a_loop_give_the_same_loss_and_gradient_with_dropout(remat, places):
    (plain, params), (looped, _) = make(places=places, layers=3), make(remat, True, places, layers=3)
    assert "while" in looped.lower(params, jax.random.key(1)).as_text()
    expected, found = (function(params, jax.random.key(1)) for function in (plain, looped))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for ours, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-7)


def test_layers_in_a_loop_give_every_hidden_state():
    states = []
    for scan in (False, True):
        config = BertConfig(num_layers=4, hidden_size=32, num_heads=2, vocab_size=96, max_positions=64, scan=scan)
        states.append(BertForMaskedLM(config, nnx.Rngs(0)).hidden_states(BATCH))
    assert len(states[0]) == len(states[1]) == 5
    for plain, looped in zip(*states, strict=True):
        np.testing.assert_allclose(looped, plain, rtol=1e-5, atol=1e-5)


def test_layers_that_differ_are_not_looped():
    with pytest.raises(UserError, match="config.model.scan"):
        BertConfig(scan=True, stochastic_depth=0.1)
