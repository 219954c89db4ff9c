"""How long a user waits: from the start of train.py to its first step, on an empty cache and on a full one.

    python -m benchmarks.start [--config=configs/bert_mlm.py] [--repeats=3]

Each start is a process of its own in a fresh workdir; the clock runs from its launch to the record of its first step.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.report import tell
from cli import commandline

FLAGS: dict[str, Any] = {"config": "configs/bert_mlm.py", "repeats": 3}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        seconds = [_start(flags["config"], folder, number) for number in range(1 + flags["repeats"])]
    result = {
        **flags,
        "first_start_seconds": round(seconds[0], 1),
        "second_start_seconds": round(statistics.median(seconds[1:]), 1),
        "second_start_range": [round(min(seconds[1:]), 1), round(max(seconds[1:]), 1)],
    }
    tell("start", [result])
    return 0


def _start(config: str, folder: str, number: int) -> float:
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={folder}/{number}"]
    begin = time.perf_counter()
    with subprocess.Popen(
        [*command, "--config.train.log_every=1"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"ROOTSTOCK_CACHE": f"{folder}/cache"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                break
        seconds = time.perf_counter() - begin
        process.kill()
    if process.returncode is not None and process.returncode > 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return seconds


if __name__ == "__main__":
    commandline.run(main)
