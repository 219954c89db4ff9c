"""What data, log and checkpoints add to the bare step of the default experiment.

    python -m benchmarks.overhead [--variant=tiny] [--blocks=20]

Blocks of 50 steps in turn: one over batches that lie ready on the device, one as train.py does it, with its batches
made and placed, its record written at the end, and every tenth time (each 500 steps, the default) histograms and a
checkpoint, which is written while the steps go on and waited for at the end of the block. The overhead is the ratio of
the two, so that a machine that changes its speed does not count. What the histograms and the checkpoint take where
nothing goes on beside them, and the checksums alone, is told as well.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax

from benchmarks.bare_step import prepare
from benchmarks.report import tell
from cli import commandline
from configs import bert_mlm
from training import manifest
from training.checkpoints import Checkpoints
from training.logbook import Logbook

FLAGS: dict[str, Any] = {"blocks": 20, "steps": 50, "variant": "tiny"}
BLOCKS_A_CHECKPOINT = 10


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    bare = prepare(bert_mlm.get_config(flags["variant"]))
    ready = [bare.put(next(bare.feed)[1]) for _ in range(8)]
    state = bare.state
    count = bare.run.histograms(bare.run.phases[0]).lower(state, ready[0]).compile()
    seconds: dict[str, list[float]] = {"bare": [], "whole": []}
    saving, checksums = [], []  # seconds
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, logbook = Checkpoints(Path(folder) / "checkpoints"), Logbook(Path(folder))

        def write(totals: Any, counted: dict[str, Any]) -> None:
            fetched, step = jax.device_get(totals), int(state["step"])
            sums = {name: float(value) for name, value in fetched["sums"].items()}
            logbook.scalars(step, "train", bare.task.metrics(sums))
            for tag, tree in jax.device_get(counted).items():
                logbook.histograms(step, tag, tree)

        for block in range(-1, flags["blocks"]):  # the first warms up
            start = time.perf_counter()
            totals = bare.totals
            for i in range(flags["steps"]):
                state, totals = bare.step(state, totals, ready[i % len(ready)])
            jax.block_until_ready(state)
            middle = time.perf_counter()
            totals, counted = bare.totals, {}
            if block % BLOCKS_A_CHECKPOINT == BLOCKS_A_CHECKPOINT - 1:
                counted = count(state, ready[0])
                checkpoints.save(state, bare.feed.get_state())
            for _ in range(flags["steps"]):
                state, totals = bare.step(state, totals, bare.put(next(bare.feed)[1]))
            write(totals, counted)
            checkpoints.wait()
            if block >= 0:
                seconds["bare"].append(middle - start)
                seconds["whole"].append(time.perf_counter() - middle)
        for _ in range(5):
            begin = time.perf_counter()
            write(bare.totals, count(state, ready[0]))
            checkpoints.save(state, bare.feed.get_state(), again=True)
            checkpoints.wait()
            saving.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            manifest.write(checkpoints.folder / str(checkpoints.steps()[-1]))  # once more: the same work
            checksums.append(time.perf_counter() - begin)
        checkpoints.close()
        logbook.close()
    ratios = sorted(whole / without for whole, without in zip(seconds["whole"], seconds["bare"], strict=True))
    bare_block = sum(seconds["bare"]) / flags["blocks"]
    result = {
        **flags,
        "overhead": round(sum(seconds["whole"]) / sum(seconds["bare"]) - 1, 4),
        "overhead_median_block": round(statistics.median(ratios) - 1, 4),
        "overhead_quartiles": [round(ratios[len(ratios) // 4] - 1, 4), round(ratios[3 * len(ratios) // 4] - 1, 4)],
        "checkpoint_and_histograms_seconds": round(statistics.median(saving), 3),
        "checksum_ms": round(1e3 * statistics.median(checksums), 1),
        "checksum_share": round(statistics.median(checksums) / BLOCKS_A_CHECKPOINT / bare_block, 5),
        "step_ms": round(1e3 * bare_block / flags["steps"], 1),
    }
    tell("overhead", [result])
    return 0


if __name__ == "__main__":
    commandline.run(main)
