"""Trains one experiment, and goes on with it when it is started again.

    python train.py --config=configs/NAME.py[:VARIANT] [--workdir=DIR] [--config.KEY=VALUE …] [FLAG …]

    --dry_run               trains nothing, and says what would be done: parameters, memory, operations, communication
    --profile=START:STOP    traces these steps, for TensorBoard
    --verify_checkpoints    trains nothing, and says which of the run's checkpoints are whole

Status: 0 done · 2 a mistake in what was given · 3 diverged · 143 or 130 stopped by a signal, after saving.
"""

import itertools
import json
import os
import sys
import time
from typing import Any

from cli import environment  # isort: skip  (sets what JAX reads when it starts)

import jax
import numpy as np
import optax

import tasks
from cli import commandline, workdir
from cli import config as configs
from cli import origin as origins
from cli.experiment import assemble
from cli.plan import describe
from data.pipeline import TrainBatches, eval_batches
from errors import UserError
from models import parameters
from training import sharding
from training.best import Best
from training.checkpoints import Checkpoints
from training.health import Findings, Health
from training.logbook import Logbook
from training.phases import Phase, enter_phase, phase_at
from training.profiler import Profiler
from training.progress import Progress
from training.step import (
    all_finite,
    evaluate,
    evaluated_params,
    make_eval_step,
)
from training.stop_signal import Interrupted, StopSignal
from training.throughput import Meter, peak_flops, training_flops


def main(argv: list[str]) -> int:
    started = time.perf_counter()
    stop = StopSignal()
    try:
        command = configs.from_command_line(argv, __doc__ or "")
        _say(f"workdir: {command.workdir}")
        if command.verify_checkpoints:
            Checkpoints(command.workdir / "checkpoints").report(_say)
            return 0
        workdir.check_place(command.workdir)
        with workdir.Lock(command.workdir) as lock:
            return train(command, lock, stop, started)
    except Interrupted:
        told = f"stopped by signal {stop.number} before the first step: nothing to save"
        print(told, file=sys.stderr, flush=True)
        return 128 + stop.number
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).rpartition("Error dispatching computation: ")[2].splitlines()[0]
        told = f"process {jax.process_index()} of {jax.process_count()} cannot go on: {reason}"
        print(f"{told}\nThe same command goes on from the newest checkpoint.", file=sys.stderr, flush=True)
        os._exit(1)  # what Python does at its end would wait for the others, who may be gone
    finally:
        stop.restore()


def train(command: configs.Command, lock: workdir.Lock, stop: StopSignal, started: float) -> int:
    """Trains in a folder that no other process trains in; returns the status."""
    config, folder = command.config, command.workdir
    profiler = Profiler(command.profile, folder)
    configs.check_alike(command)

    # ---- What it begins with, what goes in, and what is learned from it.
    origin = origins.open_origin(config, folder, command.given, _say)
    mesh = sharding.make_mesh(config.train.batch_size // config.train.accumulate, **config.mesh)
    task = tasks.TASKS[config.task].create(config, _say, origin)
    workdir.check_experiment(folder, config)
    train_rows, valid_rows = task.rows("train"), task.rows("valid")
    fingerprints = task.fingerprints() | {"train": train_rows.fingerprint, "valid": valid_rows.fingerprint}
    workdir.check_fingerprints(folder, fingerprints)
    configs.resolve_steps(config, train_rows.count)
    _say(f"train: {train_rows.summary}")
    _say(f"valid: {valid_rows.summary}")
    hosts = {"process": jax.process_index(), "processes": jax.process_count()}
    batches = TrainBatches(train_rows, config.train.batch_size, seed=config.seed, **hosts)

    # ---- What is computed: the model, its optimizer, the state and where it lies.
    everywhere = sharding.replicated(mesh)
    run = assemble(config, task, mesh)
    best = Best(config.train.best_metric, config.train.patience)
    best.check(task.metric_names())
    health = Health(config.train.bad_steps)
    if command.dry_run:
        for line in describe(config, task, run, mesh, next(batches)[1]):
            _say(line)
        return 0

    # ---- Where the run stands: at its newest checkpoint, at the weights of another, or at the start.
    if jax.process_index() == 0:
        lock.acquire()
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.train.keep)
    newest = checkpoints.newest_whole(_say, set_aside=True)
    saved, owes_evaluation = newest is not None, False

    def restore(step: int) -> tuple[Any, Any]:
        """State and position of a checkpoint; what was found out since then is forgotten."""
        template = run.layout.template(jax.eval_shape(lambda: run.fresh_state(phase_at(run.phases, step))))
        state, position = checkpoints.restore(template, step)
        best.set_state(position["best"])
        health.set_state(position.get("health", Health().get_state()))
        return state, position

    if newest is not None:
        state, position = restore(newest)
        owes_evaluation = position.get("owes_evaluation", False)
        try:
            batches.set_state(position["data"])
        except ValueError as error:
            mend = "Bring the data back as they were, or give another --workdir."
            raise UserError("config.data.train", "holds other rows than when the run was started", mend) from error
    elif origin:
        account = parameters.account(run.shapes, run.state_shapes, origin.weights, origins.FIELD)
    if jax.process_index() == 0:
        workdir.create(folder)
        lock.acquire()
    if not saved:
        fresh = jax.eval_shape(lambda: run.fresh_state(run.phases[0]))
        state = jax.jit(lambda: run.fresh_state(run.phases[0]), out_shardings=run.layout.of(fresh))()
    if origin and not saved:
        for part in state.keys() & {"params", "ema", "model_state"}:
            grafted = parameters.graft(state[part], origin.weights)
            state[part] = jax.device_put(grafted, run.layout.of(grafted))
    step = int(state["step"])
    phase = phase_at(run.phases, step)
    count = parameters.count(state["params"])
    _say(f"{config.model.name}: {count:,} parameters · {jax.device_count()} × {jax.devices()[0].device_kind}")
    if saved:
        _say(f"goes on at step {step}")
    else:
        _say(origins.describe(origin, account) if origin else "starts from scratch")
    if (step >= config.train.steps and not owes_evaluation) or best.exhausted:
        stopped = f", stopped early: best {best.metric} {best.value:.4g} at step {best.step}" if best.exhausted else ""
        _say(f"nothing left to do: {step} of {config.train.steps} steps are done{stopped}")
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
            "fingerprints": fingerprints,
        }
        workdir.write_json(folder / "run.json", workdir.describe_start(folder, step, facts))
    logbook = Logbook(folder, step, quiet=quiet)
    logbook.text("config", "```json\n" + json.dumps(configs.as_json(config), indent=2) + "\n```", step)
    logbook.text("parameters", parameters.table(state["params"]), step)

    # ---- The compiled step. The totals add up on the device; they are fetched at each log and nowhere else.
    rows_here = config.train.batch_size // jax.process_count()
    batch = sharding.put_batch(train_rows.load(np.full(rows_here, -1), np.zeros(rows_here, int)), mesh)

    def compile_step(phase: Phase) -> tuple[Any, Any]:
        """The step of a phase, and the totals that it begins each interval with."""
        begun = time.perf_counter()
        lowered, empty = run.lower(phase, state, batch)
        compiled = lowered.compile()
        trained = sum(leaf.size for path, leaf in parameters.flatten(state["params"]).items() if path in phase.rates)
        what = "" if trained == count else f"trains {trained:,} of {count:,} parameters · "
        now = time.perf_counter()
        _say(f"{what}compiled in {now - begun:.1f} s · {now - started:.1f} s since the start")
        return compiled, empty

    compiled_step, empty = compile_step(phase)
    # Not in the step: passes over the state that only a log needs.
    parameter_norm, is_finite = jax.jit(optax.tree.norm), jax.jit(all_finite)
    evaluate_batch = jax.jit(make_eval_step(run.evaluate), out_shardings=everywhere)

    peak = peak_flops(config.dtype)
    progress = Progress(step, config.train.steps, quiet=quiet)
    meter = Meter()

    count_histograms: Any = None  # compiled when first due, for the phase
    counted: dict[int, Any] = {}  # the histograms of a step since the last log

    def take_histograms(arrays: Any) -> None:
        nonlocal count_histograms
        if count_histograms is None:
            meter.stop()
            begun = time.perf_counter()
            count_histograms = run.histograms(phase).lower(state, arrays).compile()
            progress.say(f"step {step:>6}: compiled the histograms in {time.perf_counter() - begun:.1f} s")
            meter.start()
        counted[step] = count_histograms(state, arrays)

    def log(totals: Any, interval: int) -> Findings:
        """Writes the training record of the last `interval` steps; returns what they were like."""
        fetched = jax.device_get(totals)
        sums = {name: float(value) for name, value in fetched["sums"].items()}
        seconds = meter.lap()
        values = task.metrics(sums)
        values |= {name: float(fetched[name]) for name in ("learning_rate", "gradient_norm")}
        values["parameter_norm"] = float(parameter_norm(state["params"]))
        values |= {f"{what}_per_second": sums[what] / seconds for what in ("tokens", "examples") if what in sums}
        # Padding is no useful work: only what a row really holds counts.
        flops = training_flops(task.flops_per_row(), run.shapes, phase.rates)
        values["mfu"] = task.full_rows(sums) * flops / seconds / peak
        first = step - interval
        found = health.look(first, [fetched["losses"][i % config.train.log_every] for i in range(first, step)])
        if found.bad:
            values["bad_steps"] = len(found.bad)
        if found.spikes:
            values["loss_spikes"] = len(found.spikes)
        logbook.scalars(step, "train", values)
        while counted:
            at, histograms = counted.popitem()
            for tag, tree in jax.device_get(histograms).items():
                logbook.histograms(at, tag, tree)
        progress.train(step, values, (config.train.steps - step) * seconds / interval)
        for what, steps in (("is not finite, and left out", found.bad), ("leaps", found.spikes)):
            if steps and not found.lost:
                progress.say(f"step {steps[0]:>6}: the loss {what} (of {len(steps)} steps since the last log)")
        return found

    def validate() -> bool:
        """Writes the record of an evaluation; returns whether it is the best so far."""
        nonlocal owes_evaluation
        limit = config.train.eval_batches
        held_out = eval_batches(valid_rows, config.train.batch_size, limit=limit, **hosts)
        going = itertools.takewhile(lambda _: not stop.breaks_off, held_out)
        sums, outputs = evaluate(evaluate_batch, state, (sharding.put_batch(rows, mesh) for rows in going))
        owes_evaluation = stop.breaks_off
        if owes_evaluation:  # broken off: the next start makes up for it
            return False
        values = task.metrics(sums, outputs)
        logbook.scalars(step, "valid", values)
        progress.valid(step, values)
        shown = sharding.gather_here({"params": evaluated_params(state), "model_state": state.get("model_state", {})})
        if not quiet:
            for name, pixels in task.pictures(outputs, run.model(shown)).items():
                logbook.picture(step, f"valid/{name}", pixels)
        return best.update(step, values)

    def save(again: bool = False) -> None:
        position = {"data": batches.get_state(), "best": best.get_state(), "health": health.get_state()}
        checkpoints.save(state, position | {"owes_evaluation": owes_evaluation}, best.step, again=again)

    def go_back(reason: str) -> bool:
        """To the newest checkpoint, if there is one; the batches that were read since then are left out."""
        nonlocal state, step, phase, compiled_step, empty, count_histograms
        checkpoints.wait()
        sharding.meet("the checkpoint has its name")  # which the first process has given it; all shall find the same
        newest, rollbacks = checkpoints.newest_whole(progress.say, set_aside=True), health.rollbacks + 1
        if newest is None:
            return False
        meter.stop()
        progress.say(f"step {step:>6}: {reason}: back to step {newest}, without the batches since ({rollbacks} times)")
        state, _ = restore(newest)
        health.rollbacks = rollbacks
        step = newest
        if phase_at(run.phases, step) != phase:
            phase, count_histograms = phase_at(run.phases, step), None
            compiled_step, empty = compile_step(phase)
        counted.clear()
        logbook.go_back(step)
        progress.go_back(step)
        meter.start()
        return True

    # ---- The loop.
    totals, interval = empty, 0
    recent: dict[int, np.ndarray] = {}  # the rows of each step since the last log
    status, complaint = 0, ""
    stop.save_first = True
    if owes_evaluation:
        validate()
        save(again=True)
    meter.start()
    while step < config.train.steps and not best.exhausted:
        checkpoints.check()
        if traced := profiler.look(step, state):
            progress.say(traced)
        recent[step], arrays = next(batches)
        if step == 0:
            for name, pixels in task.batch_pictures(arrays).items():
                logbook.picture(step, f"train/{name}", pixels)
        placed = sharding.put_batch(arrays, mesh)
        if step and _due(step, config.train.histogram_every):
            take_histograms(placed)
        state, totals = compiled_step(state, totals, placed)
        step, interval = step + 1, interval + 1
        progress.advance()
        stopping = stop.due(step)  # looked at once a step, so that what is said below was saved
        last = step == config.train.steps or stopping != 0
        evaluating = _due(step, config.train.eval_every) or step == config.train.steps
        saving = last or step == phase.end or _due(step, config.train.checkpoint_every)
        if saving or evaluating or _due(step, config.train.log_every):
            found = log(totals, interval)
            diverged = ""
            if found.lost:
                first, others = found.lost[0], f" and of {len(found.lost) - 1} behind it" if found.lost[1:] else ""
                records = train_rows.records(recent[first]).tolist() if first in recent else "of an earlier start"
                diverged = f"loss or gradient of step {first}{others} is not finite; its records: {records}"
            elif not is_finite(state):
                diverged = f"parameters or moments are not finite behind step {step - 1}"
            ill = diverged or (f"the loss leaped in step {found.spikes[0]}" if found.spikes else "")
            if ill and health.rollbacks < config.train.rollbacks and go_back(ill):
                totals, interval, recent = empty, 0, {}
                continue
            if diverged:
                complaint, status = f"diverged: {diverged}", 3
                break
            totals, interval = empty, 0
            recent = {number: rows for number, rows in recent.items() if number in health.streak}
        if saving or evaluating:
            jax.block_until_ready(state)
            meter.stop()
            better = evaluating and validate()
            if owes_evaluation:  # of this step's state, which therefore is saved
                stopping, last = stop.number, True
            if step == phase.end:
                phase, count_histograms = phase_at(run.phases, step), None
                state = enter_phase(state, run.optimizer(phase))
                progress.say(f"step {step:>6}/{config.train.steps} a new phase of config.optimizer.phases begins")
                if not last:
                    compiled_step, empty = compile_step(phase)
                    totals = empty
            if last or better or best.exhausted or _due(step, config.train.checkpoint_every):
                save()
            meter.start()
        if stopping:
            complaint = f"stopped by signal {stopping} at step {step}, saved: the same command goes on from here"
            status = 128 + stopping
            break

    if traced := profiler.close(state):
        progress.say(traced)
    progress.close()
    checkpoints.close()
    logbook.close()
    if complaint:
        print(complaint, file=sys.stderr, flush=True)
    else:
        if best.exhausted:
            _say(f"stopped early: {best.metric} has not got better for {best.waited} evaluations")
        if best.metric:
            _say(f"best {best.metric}: {best.value:.4g} at step {best.step}, kept: --checkpoint=best")
        _say(f"done in {time.perf_counter() - started:.0f} s: python eval.py --workdir={folder}")
    return status


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _join_and_train(argv: list[str]) -> int:
    environment.connect_hosts()
    return main(argv)


if __name__ == "__main__":
    commandline.run(_join_and_train)
