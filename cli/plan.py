"""What a run would do, told without training: `train.py --dry_run`."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cli.experiment import Run
from models import parameters
from training import rules, sharding
from training.communication import collectives
from training.throughput import training_flops


def describe(config: Any, task: Any, run: Run, mesh: Any, batch: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Lines about devices, parameters, memory, operations, communication and two examples.

    The step of the first phase is compiled; nothing is computed, and nothing is written.

    Args:
        batch: the first one, this process's rows.
    """
    phase = run.phases[0]
    state = run.layout.template(jax.eval_shape(lambda: run.fresh_state(phase)))
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    yield f"devices: {jax.device_count()} × {kind} · processes: {jax.process_count()} · mesh: {axes}"
    yield from _parameters(config, run, phase)

    lowered, _ = run.lower(phase, state, sharding.put_batch(dict(batch), mesh))
    compiled = lowered.compile()
    held = {name: _bytes_here(state.get(name, {})) for name in ("params", "opt_state", "ema", "model_state")}
    memory = compiled.memory_analysis()
    parts = [f"{name} {_size(size)}" for name, size in held.items() if size]
    yield f"memory of a device: {' · '.join(parts)} · at most {_size(memory.temp_size_in_bytes)} more within a step"
    flops = training_flops(task.flops_per_row(), run.shapes, phase.rates) * config.train.batch_size
    yield f"a step: {_rows(config, batch)} · {flops:.3g} floating-point operations in matrix products"
    said = collectives(compiled.as_text())
    for kind in dict.fromkeys(one.kind for one in said):
        ours = [one for one in said if one.kind == kind]
        yield f"communication: {len(ours)} × {kind}, {_size(sum(one.bytes for one in ours))} on each device"
    if not said:
        yield "communication: none"
    for number, example in enumerate(task.examples(batch), 1):
        yield f"example {number}: {example}"


def _parameters(config: Any, run: Run, phase: Any) -> Iterator[str]:
    """A line for each: shape, type, where it is split, at what share of the rate it is trained, whether it decays."""
    shapes = parameters.flatten(run.shapes)
    matched = rules.match(config.optimizer.decay_rules, run.shapes, "config.optimizer.decay_rules")
    decays = dict(zip(shapes, jax.tree.leaves(matched), strict=True))
    width = max(map(len, shapes))
    yield f"{'parameter':{width}}  {'shape':16} {'dtype':8} {'split':18} {'rate':7} decays"
    for path, leaf in shapes.items():
        split = ", ".join(axis or "-" for axis in run.layout.specs[path]) if any(run.layout.specs[path]) else "whole"
        rate = f"× {phase.rates[path]:.3g}" if path in phase.rates else "frozen"
        decay = "yes" if decays[path] and path in phase.rates and config.optimizer.weight_decay else "no"
        yield f"{path:{width}}  {str(list(leaf.shape)):16} {leaf.dtype.name:8} {split:18} {rate:7} {decay}"
    trained = sum(leaf.size for path, leaf in shapes.items() if path in phase.rates)
    yield f"{parameters.count(run.shapes):,} parameters, {trained:,} of them trained"
    for axis in (sharding.FSDP, sharding.TENSOR):
        whole = [path for path, axes in run.layout.whole.items() if axis in axes]
        if whole:
            shown = ", ".join(f"{path} {list(shapes[path].shape)}" for path in whole[:3]) + (" …" if whole[3:] else "")
            size = run.layout.mesh.shape[axis]
            yield f"whole along {axis}, whose {size} divides none of their dimensions: {len(whole)}: {shown}"


def _rows(config: Any, batch: Mapping[str, np.ndarray]) -> str:
    """How many rows, and of texts how many places and tokens; from this process's part of the first batch."""
    told = [f"{config.train.batch_size:,} rows"]
    for name, segments in batch.items():
        if name.endswith("segment_ids"):
            side = name.removesuffix("segment_ids").replace("_", " ")
            scale = config.train.batch_size / len(segments)
            places, tokens = (round(count * scale) for count in (segments.size, (segments > 0).sum()))
            told.append(f"{places:,} {side}places, {tokens:,} {side}tokens ({1 - tokens / places:.1%} padding)")
    return " · ".join(told)


def _bytes_here(tree: Any) -> int:
    """What a device holds of a tree of shapes with shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
