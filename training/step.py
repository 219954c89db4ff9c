"""The compiled step: gradients of sums, clipping, update; and what is added up on the device between two logs.

The loss comes as a sum and a weight, never as a mean. So micro-batches, devices and short batches add up to exactly the
full batch's number: divide once, by the whole weight.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from training import rules
from training.phases import Phase, PhaseOptimizer

Tree = Any
Sums = dict[str, jax.Array]
# (params, model_state, batch, key) -> (sums with "loss" and "weight" among them, model_state)
Forward = Callable[[Tree, Tree, Tree, jax.Array | None], tuple[Sums, Tree]]

HISTOGRAM_BINS = 64


def create_state(params: Tree, model_state: Tree, optimizer: PhaseOptimizer, averaged: bool = False) -> Tree:
    """The training state: all that a checkpoint must hold beside the data position.

    Args:
        averaged: with an average of the parameters over steps, under `ema`.
    """
    state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
    state |= {"ema": jax.tree.map(jnp.copy, params)} if averaged else {}
    return state | ({"model_state": model_state} if model_state else {})


def evaluated_params(state: Tree) -> Tree:
    """The parameters that an evaluation goes by: their average, if there is one."""
    return state.get("ema", state["params"])


def make_train_step(
    forward: Forward,
    optimizer: PhaseOptimizer,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    seed: int,
    clip_norm: float = 0.0,
    accumulate: int = 1,
    ema: float = 0.0,
) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
    """`step(state, totals, batch) -> (state, totals)`, to be jitted with the state donated.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were; `totals` has a NaN in the
    place of its loss.
    What the optimizer's phase freezes is a constant of the step: it passes through, and nothing is computed for it.

    Args:
        clip_norm: the largest global norm of the gradient; 0 for no bound.
        accumulate: into how many micro-batches the rows are split, one behind the other.
        ema: the share of the average of the parameters that a step keeps; less in the first steps, so that the average
            does not begin with what was drawn (Tan & Le 2019, arXiv:1905.11946, go by TensorFlow's rule, as this does).
    """

    def step(state: Tree, totals: Tree, batch: Tree) -> tuple[Tree, Tree]:
        number = state["step"]
        trained, frozen = optimizer.phase.split(state["params"])
        gradients, sums, model_state = _differentiate(forward, optimizer.phase, seed, accumulate, state, batch)

        weight = jnp.where(sums["weight"] > 0, sums["weight"], 1.0)
        norm = optax.tree.norm(gradients) / weight
        finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
        scale = jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12)) if clip_norm else 1.0
        gradients = jax.tree.map(lambda g: g * (scale / weight), gradients)

        rate = jnp.asarray(schedule(number), jnp.float32)
        directions, opt_state = optimizer.update(gradients, state["opt_state"], trained)
        updated = jax.tree.map(lambda p, d: p - rate * d, trained, directions)

        def if_finite(new: Tree, old: Tree) -> Tree:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        new_state = {
            "params": rules.join(*if_finite(updated, trained).values(), frozen),
            "opt_state": if_finite(opt_state, state["opt_state"]),
            "step": number + 1,
        }
        if model_state:
            new_state["model_state"] = if_finite(model_state, state["model_state"])
        if ema:
            kept = jnp.minimum(ema, (1 + number) / (10 + number))
            averaged = jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, state["ema"], new_state["params"])
            new_state["ema"] = if_finite(averaged, state["ema"])

        new_totals = {
            "sums": jax.tree.map(lambda total, x: total + jnp.where(finite, x, 0), totals["sums"], sums),
            "losses": totals["losses"]
            .at[number % totals["losses"].size]
            .set(jnp.where(finite, sums["loss"] / weight, jnp.nan)),
            "learning_rate": rate,
            "gradient_norm": norm,
        }
        return new_state, new_totals

    return step


def make_histograms(
    forward: Forward, phase: Phase, *, seed: int, accumulate: int = 1
) -> Callable[[Tree, Tree], dict[str, Tree]]:
    """`count(state, batch) -> {"parameters": …, "gradients": …}`, of the step that comes, to be called before it.

    The gradient is computed once more. That costs a step every few hundred; inside of the step the counting, hardly
    ever run, would cost more: with 24 layers its branch took ten times as long to compile as all the rest.
    """

    def count(state: Tree, batch: Tree) -> dict[str, Tree]:
        gradients, sums, _ = _differentiate(forward, phase, seed, accumulate, state, batch)
        mean = jax.tree.map(lambda g: g / jnp.where(sums["weight"] > 0, sums["weight"], 1.0), gradients)
        return {"parameters": _histograms(state["params"]), "gradients": _histograms(rules.join(*mean.values()))}

    return count


def empty_totals(forward: Forward, state: Tree, batch: Tree, log_every: int = 50) -> Tree:
    """The totals before the first step of an interval, on the host; `batch` and `state` give shapes alone.

    Args:
        log_every: the most steps of an interval; of so many is each one's loss kept, at its number modulo `log_every`.
    """
    sums, _ = jax.eval_shape(forward, state["params"], state.get("model_state", {}), batch, jax.random.key(0))
    totals = {
        "sums": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums),
        "losses": jnp.zeros(log_every),
    }
    totals |= {name: jnp.zeros(()) for name in ("learning_rate", "gradient_norm")}
    return totals


def all_finite(tree: Tree) -> jax.Array:
    """Whether every number of the tree is finite."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def make_eval_step(forward: Callable[..., tuple[Any, Tree]]) -> Callable[[Tree, Tree], tuple[Sums, Tree]]:
    """`evaluate(state, batch) -> (sums, outputs)`, without dropout; `forward` is a task's `evaluate`, as a function."""
    return lambda state, batch: forward(evaluated_params(state), state.get("model_state", {}), batch, None)[0]


def evaluate(
    eval_step: Callable[[Tree, Tree], tuple[Sums, Tree]], state: Tree, batches: Iterable[Tree]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The sums over all batches, added on the host in double precision, and their outputs, one behind the other."""
    per_batch = jax.device_get([eval_step(state, batch) for batch in batches])
    sums = {name: math.fsum(float(sums[name]) for sums, _ in per_batch) for name in per_batch[0][0]}
    outputs = {name: np.concatenate([outputs[name] for _, outputs in per_batch]) for name in per_batch[0][1]}
    return sums, outputs


def _differentiate(
    forward: Forward, phase: Phase, seed: int, accumulate: int, state: Tree, batch: Tree
) -> tuple[Tree, Sums, Tree]:
    """The gradient of what the phase trains, by group, the sums and the new model state of the step of a state."""
    trained, frozen = phase.split(state["params"])
    key = jax.random.fold_in(jax.random.key(seed), state["step"])

    def forward_trained(trained: Tree, *arguments: Any) -> tuple[Sums, Tree]:
        return forward(rules.join(*trained.values(), frozen), *arguments)

    return _gradients(forward_trained, trained, state.get("model_state", {}), batch, key, accumulate)


def _gradients(
    forward: Forward, params: Tree, model_state: Tree, batch: Tree, key: jax.Array, accumulate: int
) -> tuple[Tree, Sums, Tree]:
    """The gradient of the summed loss, the sums and the new model state, over all micro-batches."""

    def loss(params: Tree, model_state: Tree, rows: Tree, key: jax.Array) -> tuple[jax.Array, tuple[Sums, Tree]]:
        sums, new_model_state = forward(params, model_state, rows, key)
        return sums["loss"], (sums, new_model_state)

    differentiate = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        gradients, (sums, model_state) = differentiate(params, model_state, batch, key)
        return gradients, sums, model_state

    def micro_step(carry: Tree, inputs: Tree) -> tuple[Tree, None]:
        gradients, sums, model_state = carry
        rows, i = inputs
        more, (more_sums, model_state) = differentiate(params, model_state, rows, jax.random.fold_in(key, i))
        return (jax.tree.map(jnp.add, gradients, more), jax.tree.map(jnp.add, sums, more_sums), model_state), None

    # Micro-batch i takes every accumulate-th row, so that each device goes on working on the rows that it holds.
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    first = jax.tree.map(lambda x: x[0], micro)
    shapes = jax.eval_shape(forward, params, model_state, first, key)[0]
    zeros = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    (gradients, sums, model_state), _ = jax.lax.scan(micro_step, (*zeros, model_state), (micro, jnp.arange(accumulate)))
    return gradients, sums, model_state


def _histograms(tree: Tree) -> Tree:
    """Each leaf as {low, high, counts [bins], sum, square}: what TensorBoard draws, small enough to fetch."""

    def count(x: jax.Array) -> dict[str, jax.Array]:
        x = x.reshape(-1).astype(jnp.float32)
        low, high = x.min(), x.max()
        width = jnp.maximum(high - low, 1e-30)
        bins = jnp.clip(((x - low) / width * HISTOGRAM_BINS).astype(jnp.int32), 0, HISTOGRAM_BINS - 1)
        counts = jnp.zeros(HISTOGRAM_BINS, jnp.int32).at[bins].add(1)
        return {"low": low, "high": high, "counts": counts, "sum": x.sum(), "square": jnp.square(x).sum()}

    return jax.tree.map(count, tree)
