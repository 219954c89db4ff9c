"""A trace of some steps, for TensorBoard and Perfetto: `train.py --profile=START:STOP`."""

import re
from pathlib import Path
from typing import Any

import jax

from errors import UserError


class Profiler:
    """Traces the steps from `start` up to `stop` into `WORKDIR/profile`.

    Args:
        asked: `START:STOP`; empty: nothing is traced.

    Raises:
        UserError: it is something else.
    """

    def __init__(self, asked: str, workdir: Path):
        self._folder, self._running = workdir / "profile", False
        numbers = re.fullmatch(r"(\d{1,9}):(\d{1,9})", asked)
        self._start, self._stop = (int(numbers[1]), int(numbers[2])) if numbers else (-1, -1)
        if asked and not (numbers and self._start < self._stop):
            raise UserError("--profile", repr(asked), "Give the first step and the one behind the last: 20:25.")

    def look(self, step: int, state: Any) -> str:
        """Called before step `step` and behind the last one; what there is to say."""
        if not self._running and self._start <= step < self._stop:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step >= self._stop:
            return self.close(state)
        return ""

    def close(self, state: Any) -> str:
        """Ends the trace when the steps that were begun are done."""
        if not self._running:
            return ""
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._running = False
        return f"traced up to step {self._stop}: tensorboard --logdir={self._folder}"
