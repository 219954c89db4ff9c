"""Trains one experiment, and goes on with it when it is started again.

    python train.py --config=configs/NAME.py[:VARIANT] [--workdir=DIR] [--config.KEY=VALUE …]

Status: 0 done · 2 a mistake in what was given · 3 diverged · 143 or 130 stopped by a signal, after saving.
"""

import json
import signal
import sys
import time
from typing import Any

from cli import environment  # isort: skip  (sets what JAX reads when it starts)

import jax
import numpy as np

import tasks
from cli import commandline, workdir
from cli import config as configs
from data.pipeline import TrainBatches, eval_batches
from errors import UserError
from models import parameters
from training import optimizer as optimizers
from training import sharding
from training.checkpoints import Checkpoints
from training.logbook import Logbook
from training.progress import Progress
from training.step import NEVER, create_state, empty_totals, evaluate, make_eval_step, make_train_step
from training.throughput import Meter, peak_flops


def main(argv: list[str]) -> int:
    started = time.perf_counter()
    config, folder = configs.from_command_line(argv, __doc__ or "")
    _say(f"workdir: {folder}")
    workdir.check_place(folder)

    # ---- What goes in, and what is learned from it.
    mesh = sharding.make_mesh(config.mesh.data, config.train.batch_size // config.train.accumulate)
    task = tasks.TASKS[config.task].create(config, _say)
    workdir.check_experiment(folder, config)
    train_rows, valid_rows = task.rows("train"), task.rows("valid")
    configs.resolve_steps(config, train_rows.count)
    _say(f"train: {train_rows.summary}")
    _say(f"valid: {valid_rows.summary}")
    hosts = {"process": jax.process_index(), "processes": jax.process_count()}
    batches = TrainBatches(train_rows, config.train.batch_size, seed=config.seed, **hosts)

    # ---- What is computed: the model, its optimizer, the state and where it lies.
    everywhere = sharding.replicated(mesh)
    forward, fresh_state, train_step = assemble(config, task)

    # ---- Where the run stands: at its newest checkpoint, or at the start.
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.train.keep)
    saved = checkpoints.steps()
    if saved:
        template = jax.eval_shape(fresh_state)
        template = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), template)
        state, position = checkpoints.restore(template, saved[-1])
        try:
            batches.set_state(position)
        except ValueError as error:
            mend = "Bring the data back as they were, or give another --workdir."
            raise UserError("config.data.train", "holds other rows than when the run was started", mend) from error
    workdir.create(folder)
    if not saved:
        state = jax.jit(fresh_state, out_shardings=everywhere)()
    step = int(state["step"])
    count = parameters.count(state["params"])
    _say(f"{config.model.name}: {count:,} parameters · {jax.device_count()} × {jax.devices()[0].device_kind}")
    _say(f"goes on at step {step}" if saved else "starts from scratch")
    if step >= config.train.steps:
        _say(f"nothing left to do: {step} of {config.train.steps} steps are done")
        return 0

    # ---- What the run writes down.
    quiet = jax.process_index() != 0  # of several processes only the first writes and prints
    if not quiet:
        workdir.write_json(folder / "config.json", configs.as_json(config))  # first: it makes the folder a run's
        task.save(folder)
        facts = {
            "devices": [str(device) for device in jax.devices()],
            "device_kind": jax.devices()[0].device_kind,
            "parameters": count,
            "fingerprints": {
                "tokenizer": task.tokenizer.fingerprint,
                "train": train_rows.fingerprint,
                "valid": valid_rows.fingerprint,
            },
        }
        workdir.write_json(folder / "run.json", workdir.describe_start(folder, step, facts))
    logbook = Logbook(folder, step, quiet=quiet)
    logbook.text("config", "```json\n" + json.dumps(configs.as_json(config), indent=2) + "\n```", step)
    logbook.text("parameters", parameters.table(state["params"]), step)

    # ---- The compiled step. The totals add up on the device; they are fetched at each log and nowhere else.
    every = config.train.histogram_every
    rows_here = config.train.batch_size // jax.process_count()
    batch = sharding.put_batch(train_rows.load(np.full(rows_here, -1), np.zeros(rows_here, int)), mesh)
    empty = sharding.put_replicated(empty_totals(forward, state, batch, every), mesh)
    compiling = time.perf_counter()
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
    compiled_step = jitted.lower(state, empty, batch).compile()
    evaluate_batch = jax.jit(make_eval_step(forward), out_shardings=everywhere)
    _say(f"compiled in {time.perf_counter() - compiling:.1f} s · {time.perf_counter() - started:.1f} s since the start")

    flops_per_row, peak = task.flops_per_row(), peak_flops(config.dtype)
    progress = Progress(step, config.train.steps, quiet=quiet)
    meter = Meter()
    stop = _StopSignal()

    def log(totals: Any, interval: int) -> int:
        """Writes the training record of the last `interval` steps; returns the first of them that was not finite."""
        fetched = jax.device_get(totals)
        sums = {name: float(value) for name, value in fetched["sums"].items()}
        seconds = meter.lap()
        values = task.metrics(sums)
        values |= {name: float(fetched[name]) for name in ("learning_rate", "gradient_norm", "parameter_norm")}
        values["tokens_per_second"] = sums["tokens"] / seconds
        values["examples_per_second"] = sums["examples"] / seconds
        # Padding is no useful work: the share of real tokens counts.
        rows = sums["tokens"] / config.data.seq_len
        values["mfu"] = rows * flops_per_row / seconds / peak
        if fetched["bad_steps"]:
            values["bad_steps"] = int(fetched["bad_steps"])
        logbook.scalars(step, "train", values)
        if every and step // every > (step - interval) // every:
            for tag, tree in fetched["histograms"].items():
                logbook.histograms(step // every * every, tag, tree)
        progress.train(step, values, (config.train.steps - step) * seconds / interval)
        return int(fetched["first_bad_step"])

    def validate() -> None:
        limit = config.train.eval_batches
        held_out = eval_batches(valid_rows, config.train.batch_size, limit=limit, **hosts)
        sums = evaluate(evaluate_batch, state, (sharding.put_batch(rows, mesh) for rows in held_out))
        values = task.metrics(sums)
        logbook.scalars(step, "valid", values)
        progress.valid(step, values)

    # ---- The loop.
    totals, interval = empty, 0
    recent: dict[int, np.ndarray] = {}  # the rows of each step since the last log
    status, complaint = 0, ""
    meter.start()
    while step < config.train.steps:
        recent[step], arrays = next(batches)
        state, totals = compiled_step(state, totals, sharding.put_batch(arrays, mesh))
        step, interval = step + 1, interval + 1
        progress.advance()
        stopping = stop.number  # looked at once a step, so that what is said below was saved
        last = step == config.train.steps or stopping != 0
        if last or step % config.train.log_every == 0:
            bad_step = log(totals, interval)
            if bad_step != NEVER:
                records = train_rows.records(recent[bad_step]).tolist()
                complaint = f"diverged: loss or gradient of step {bad_step} is not finite; its records: {records}"
                status = 3
                break
            totals, interval, recent = empty, 0, {}
        if last or _due(step, config.train.eval_every) or _due(step, config.train.checkpoint_every):
            jax.block_until_ready(state)
            meter.stop()
            if _due(step, config.train.eval_every) or step == config.train.steps:
                validate()
            if last or _due(step, config.train.checkpoint_every):
                checkpoints.save(state, batches.get_state())
            meter.start()
        if stopping:
            complaint = f"stopped by signal {stopping} at step {step}, saved: the same command goes on from here"
            status = 128 + stopping
            break

    progress.close()
    checkpoints.close()
    logbook.close()
    if complaint:
        print(complaint, file=sys.stderr, flush=True)
    else:
        _say(f"done in {time.perf_counter() - started:.0f} s: python eval.py --workdir={folder}")
    return status


def assemble(config: Any, task: Any) -> tuple[Any, Any, Any]:
    """The forward pass with its loss, what draws a fresh state, and the training step; nothing is computed."""
    graphdef, shapes, _ = parameters.structure(task.build)
    forward = parameters.functional(graphdef, task.loss)
    chosen = config.optimizer
    optimizer = optimizers.make_optimizer(
        chosen.name,
        shapes,
        b1=chosen.b1,
        b2=chosen.b2,
        epsilon=chosen.epsilon,
        weight_decay=chosen.weight_decay,
        decay_rules=chosen.decay_rules,
    )
    schedule = optimizers.make_schedule(
        chosen.schedule,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.warmup_steps,
        steps=config.train.steps,
        final_share=chosen.final_share,
    )

    def fresh_state() -> Any:
        params, model_state = parameters.initialize(task.build, jax.random.key(config.seed))
        return create_state(params, model_state, optimizer)

    train_step = make_train_step(
        forward,
        optimizer,
        schedule,
        seed=config.seed,
        clip_norm=chosen.clip_norm,
        accumulate=config.train.accumulate,
        histogram_every=config.train.histogram_every,
    )
    return forward, fresh_state, train_step


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _StopSignal:
    """Remembers the first SIGTERM or Ctrl-C, so that the loop can save and leave; a second Ctrl-C kills as usual."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    environment.connect_hosts()
    commandline.run(main)
