import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.checkpoints import Checkpoints
from training.phases import PhaseOptimizer, make_phases
from training.step import create_state, empty_totals, make_eval_step, make_train_step


def forward(params, model_state, batch, key):
    error = params["w"] - batch["target"]
    return {"loss": jnp.square(error).sum(), "weight": jnp.ones(())}, model_state


def train(steps: int, ema: float, targets) -> list[dict]:
    params = {"w": jnp.array([1.0, -2.0])}
    phase = make_phases(params, ((".*", 1.0),))[0]
    optimizer = PhaseOptimizer(optax.identity(), phase)
    state = create_state(params, {}, optimizer, averaged=ema > 0)
    step = jax.jit(make_train_step(forward, optimizer, lambda number: 0.1, seed=0, ema=ema))
    states = [state]
    for number in range(steps):
        batch = {"target": jnp.asarray(targets[number])}
        state, _ = step(state, empty_totals(forward, state, batch), batch)
        states.append(state)
    return states


def test_the_average_is_that_of_a_loop_with_less_kept_in_the_first_steps():
    states = train(30, 0.7, np.random.default_rng(0).normal(size=(30, 2)))
    average = np.array([1.0, -2.0])
    for number, state in enumerate(states[1:]):
        kept = min(0.7, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * np.asarray(state["params"]["w"])
        assert np.allclose(state["ema"]["w"], average, atol=1e-6)


def test_a_step_that_is_not_finite_leaves_the_average_alone():
    targets = np.ones((4, 2))
    targets[2] = np.nan
    states = train(4, 0.9, targets)
    assert np.array_equal(states[3]["ema"]["w"], states[2]["ema"]["w"])
    assert not np.array_equal(states[4]["ema"]["w"], states[3]["ema"]["w"])


def test_an_evaluation_goes_by_the_average_and_training_does_not():
    averaged, plain = train(5, 0.9, np.ones((5, 2)))[-1], train(5, 0.0, np.ones((5, 2)))[-1]
    assert np.array_equal(averaged["params"]["w"], plain["params"]["w"]) and "ema" not in plain
    evaluate = make_eval_step(lambda *arguments: ((forward(*arguments)[0], {}), arguments[1]))
    sums, _ = evaluate(averaged, {"target": jnp.zeros(2)})
    assert float(sums["loss"]) == pytest.approx(float(jnp.square(averaged["ema"]["w"]).sum()))


def test_what_is_restored_to_be_used_is_the_average(tmp_path):
    state = train(5, 0.9, np.ones((5, 2)))[-1]
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, {"data": None, "best": None})
    checkpoints.wait()
    template = {"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}, "model_state": {}}
    params, _ = Checkpoints(tmp_path / "checkpoints").restore_params(5, template)
    assert np.array_equal(params["w"], state["ema"]["w"])
    checkpoints.close()
