import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.phases import PhaseOptimizer, make_phases
from training.step import (
    all_finite,
    create_state,
    empty_totals,
    evaluate,
    make_eval_step,
    make_histograms,
    make_train_step,
)

PARAMS = {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "bias": jnp.zeros(2)}


def forward(params, model_state, batch, key):
    """A weighted linear regression; the weights make the rows unequal, as the numbers of tokens do."""
    error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
    return {"loss": (batch["weight"][:, None] * error**2).sum(), "weight": batch["weight"].sum()}, model_state


def over_all(core, params=None):
    """The transformation over all parameters, as one phase."""
    (phase,) = make_phases(params or PARAMS, ((".*", 1.0),))
    return PhaseOptimizer(core, phase)


def batch(rows=8, seed=0):
    draw = np.random.default_rng(seed)
    arrays = {"x": draw.normal(size=(rows, 3)), "y": draw.normal(size=(rows, 2)), "weight": draw.uniform(0, 3, rows)}
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def run(batches, **settings):
    optimizer = over_all(optax.scale_by_adam())
    traced = []
    train_step = make_train_step(forward, optimizer, lambda step: 0.1, seed=0, **settings)
    step = jax.jit(lambda *arguments: traced.append(1) or train_step(*arguments))
    state = create_state(PARAMS, {}, optimizer)
    totals = empty_totals(forward, state, batches[0], log_every=4)
    for rows in batches:
        state, totals = step(state, totals, rows)
    assert len(traced) == 1, "one compilation for all steps"
    return state, totals


def test_the_gradient_is_that_of_the_weighted_mean():
    rows = batch()
    _, totals = run([rows])

    def mean(params):
        sums, _ = forward(params, {}, rows, None)
        return sums["loss"] / sums["weight"]

    assert float(totals["gradient_norm"]) == pytest.approx(float(optax.tree.norm(jax.grad(mean)(PARAMS))), rel=1e-5)
    assert float(totals["sums"]["weight"]) == pytest.approx(float(rows["weight"].sum()), rel=1e-6)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_gradients_equal_the_full_batch_whatever_the_weights(accumulate):
    batches = [batch(seed=seed) for seed in range(3)]
    whole, whole_totals = run(batches)
    split, split_totals = run(batches, accumulate=accumulate)
    for a, b in zip(jax.tree.leaves(whole["params"]), jax.tree.leaves(split["params"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(whole["step"]) == int(split["step"]) == 3
    assert float(whole_totals["sums"]["loss"]) == pytest.approx(float(split_totals["sums"]["loss"]), rel=1e-5)


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    optimizer = over_all(optax.identity())
    rows = batch()
    updates = []
    for clip_norm in (0.0, 0.01):
        step = make_train_step(forward, optimizer, lambda step: 1.0, seed=0, clip_norm=clip_norm)
        state = create_state(PARAMS, {}, optimizer)
        new, _ = step(state, empty_totals(forward, state, rows), rows)
        updates.append(
            np.concatenate(
                [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (PARAMS, new["params"])), strict=True)]
            )
        )
    free, clipped = updates
    assert np.linalg.norm(clipped) == pytest.approx(0.01, rel=1e-4)
    np.testing.assert_allclose(clipped / 0.01, free / np.linalg.norm(free), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_parameters_and_optimizer_untouched(poison):
    good, bad = batch(), batch(seed=1)
    bad["y"] = bad["y"].at[3, 1].set(poison)
    before, _ = run([good])
    after, totals = run([good, bad])
    for a, b in zip(jax.tree.leaves(before["params"]), jax.tree.leaves(after["params"]), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(before["opt_state"]), jax.tree.leaves(after["opt_state"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(totals["losses"]).tolist() == [False, True, False, False]
    assert np.isfinite(float(totals["sums"]["loss"]))


def test_the_loss_of_every_step_is_kept_at_its_place_and_those_left_out_are_nan():
    bad = batch()
    bad["x"] = bad["x"].at[0, 0].set(np.nan)
    good = [batch(seed=seed) for seed in range(3)]
    _, totals = run([good[0], bad, good[1], bad, good[2]])
    losses = np.asarray(totals["losses"])
    assert np.isnan(losses).tolist() == [False, True, False, True], "step 4 stands where step 0 stood"
    means = []
    for count in (1, 3, 5):
        after, _ = run([good[0], bad, good[1], bad, good[2]][: count - 1] or [bad])
        sums, _ = forward(after["params"], {}, good[count // 2], None)
        means.append(float(sums["loss"] / sums["weight"]))
    assert losses[[0, 2]].tolist() == pytest.approx([means[2], means[1]], rel=1e-5)


def test_one_number_that_is_not_finite_is_found_among_all():
    tree = {"a": jnp.ones((3, 2)), "b": {"c": jnp.arange(4)}}
    assert bool(all_finite(tree))
    assert not bool(all_finite({**tree, "d": jnp.array([1.0, np.inf])}))


def test_a_batch_of_weight_zero_changes_nothing_and_is_no_division_by_zero():
    empty = batch()
    empty["weight"] = jnp.zeros(8)
    optimizer = over_all(optax.identity())
    step = make_train_step(forward, optimizer, lambda step: 1.0, seed=0)
    state = create_state(PARAMS, {}, optimizer)
    new, totals = step(state, empty_totals(forward, state, empty), empty)
    np.testing.assert_array_equal(new["params"]["kernel"], PARAMS["kernel"])
    assert np.isfinite(totals["losses"]).all()


def test_histograms_count_every_parameter_and_the_gradient_of_the_step_that_comes():
    state, _ = run([batch(seed=seed) for seed in range(2)])
    rows = batch(seed=2)

    def mean(params):
        sums, _ = forward(params, {}, rows, None)
        return sums["loss"] / sums["weight"]

    expected = {"parameters": state["params"], "gradients": jax.grad(mean)(state["params"])}
    for accumulate in (1, 2):
        phase = over_all(optax.identity()).phase
        counted = make_histograms(forward, phase, seed=0, accumulate=accumulate)(state, rows)
        for what, tree in expected.items():
            kernel, found = np.asarray(tree["kernel"]), counted[what]["kernel"]
            assert float(found["low"]) == pytest.approx(kernel.min(), rel=1e-4)
            assert float(found["high"]) == pytest.approx(kernel.max(), rel=1e-4)
            assert float(found["sum"]) == pytest.approx(kernel.sum(), rel=1e-3, abs=1e-5)
            width = (kernel.max() - kernel.min()) / 64
            bins = np.clip(((kernel - kernel.min()) / width).astype(int), 0, 63)
            if accumulate == 1:
                np.testing.assert_array_equal(np.asarray(found["counts"]), np.bincount(bins.ravel(), minlength=64))


def test_an_evaluation_in_several_batches_gives_the_sums_and_outputs_of_one():
    rows = batch(rows=12)
    state = {"params": PARAMS}

    def with_outputs(params, model_state, batch, key):
        sums, model_state = forward(params, model_state, batch, key)
        return (sums, {"guess": batch["x"] @ params["kernel"]}), model_state

    step = make_eval_step(with_outputs)
    whole, outputs = evaluate(step, state, [rows])
    thirds = [{name: x[i : i + 4] for name, x in rows.items()} for i in (0, 4, 8)]
    parts, parted = evaluate(step, state, thirds)
    assert parts == pytest.approx(whole, rel=1e-6)
    np.testing.assert_allclose(outputs["guess"], np.asarray(rows["x"] @ PARAMS["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(parted["guess"], outputs["guess"], rtol=1e-6)
