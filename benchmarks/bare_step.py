"""The bare step of an experiment as train.py compiles it, and its time: data, log and checkpoints are not in it."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
from ml_collections import ConfigDict

import tasks
from cli import config as configs
from cli.experiment import Run, assemble
from cli.origin import open_origin
from data.pipeline import TrainBatches, eval_batches
from training import sharding
from training.step import evaluate, make_eval_step
from training.throughput import measured_peak, training_flops

NO_RUN = Path("no/such/run")  # nothing is resumed


class Bare(NamedTuple):
    """A compiled training step and what it takes; nothing is read or written while it runs.

    The state begins with fresh weights, also where `config.init_from` decides the model: the time is the same.
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    run: Run
    state: Any
    totals: Any
    feed: TrainBatches
    put: Callable[[Any], Any]  # a batch onto the devices
    task: Any
    compile_seconds: float


def prepare(config: ConfigDict) -> Bare:
    """The step that train.py would compile for this config."""
    configs.complete_model(config)
    for name in {"vocab_size", "max_positions", "image_size", "channels"} & set(config.model):
        config.model[name] = 0  # these follow from the data
    origin = open_origin(config, NO_RUN, set(), print)
    task = tasks.TASKS[config.task].create(config, lambda line: None, origin)
    mesh = sharding.make_mesh(config.train.batch_size)
    everywhere = sharding.replicated(mesh)
    feed = TrainBatches(task.rows("train"), config.train.batch_size, seed=config.seed)
    run = assemble(config, task, mesh)
    (phase,) = run.phases
    state = jax.jit(lambda: run.fresh_state(phase), out_shardings=everywhere)()

    def put(batch: Any) -> Any:
        return sharding.put_batch(batch, mesh)

    shapes = put(next(feed)[1])
    start = time.perf_counter()
    lowered, totals = run.lower(phase, state, shapes)
    step = lowered.compile()
    return Bare(step, run, state, totals, feed, put, task, time.perf_counter() - start)


def measure(bare: Bare, steps: int) -> dict[str, Any]:
    """Times `steps` steps, one by one, after three that are not counted."""
    config = bare.task.config
    batches = [bare.put(next(bare.feed)[1]) for _ in range(8)]
    state, totals, seconds = bare.state, bare.totals, []
    for i in range(3 + steps):
        start = time.perf_counter()
        state, totals = bare.step(state, totals, batches[i % len(batches)])
        jax.block_until_ready(totals)
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[3:])
    middle = statistics.median(timed)
    sums = {name: float(value) / len(seconds) for name, value in jax.device_get(totals)["sums"].items()}
    peak = measured_peak(config.dtype, repeats=20)
    flops = training_flops(bare.task.flops_per_row(), bare.run.shapes, bare.run.phases[0].rates)
    return {
        "step_ms": round(1e3 * middle, 1),
        "step_ms_quartiles": [round(1e3 * timed[len(timed) // 4], 1), round(1e3 * timed[3 * len(timed) // 4], 1)],
        **({"tokens_per_second": round(sums["tokens"] / middle)} if "tokens" in sums else {}),
        "examples_per_second": round(sums["examples"] / middle, 1),
        "mfu": round(flops * config.train.batch_size / middle / peak, 3),
        "gemm_gflops": round(peak / 1e9),
        "compile_seconds": round(bare.compile_seconds, 1),
    }


def measure_evaluation(bare: Bare, repeats: int = 3) -> float:
    """Examples per second of evaluations of the whole validation split, a median; the first is not counted."""
    step = jax.jit(make_eval_step(bare.run.evaluate))
    rows = bare.task.rows("valid")
    rates = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        batches = (bare.put(batch) for batch in eval_batches(rows, bare.task.config.train.batch_size))
        sums, _ = evaluate(step, bare.state, batches)
        rates.append(sums["examples"] / (time.perf_counter() - start))
    return round(statistics.median(rates[1:]), 1)
