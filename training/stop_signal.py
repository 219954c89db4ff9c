"""SIGTERM and Ctrl-C: a run saves and leaves, and the processes of a run on several hosts do so at the same step."""

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(BaseException):
    """A signal came when there was nothing to save yet."""


class StopSignal:
    """Remembers a signal, so that the loop can save and leave; before the loop, it ends what is going on.

    Of several processes perhaps one alone gets it. Then JAX, which has a handler of SIGTERM of its own as soon as they
    are joined, tells the others and names a step that all of them can stop at; Ctrl-C is given on to it as SIGTERM.

    Attributes:
        number: of the signal that came; 0 for none.
        save_first: whether there is something to save.
    """

    def __init__(self) -> None:
        self.number, self.save_first = 0, False
        self._agreed = False
        self._several = jax.distributed.is_initialized()
        own = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._handle) for number in own}

    def restore(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self, step: int) -> int:
        """The signal to stop for behind this step, in every process the same step; 0 for none. Called once a step."""
        if not self._several:
            return self.number
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(step)
        return (self.number or signal.SIGTERM) if self._agreed else 0

    @property
    def breaks_off(self) -> bool:
        """Whether an evaluation, which the processes do together, is to be broken off."""
        return self.number != 0 and not self._several

    def _handle(self, number: int, frame: Any) -> None:
        self.number = number
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self.save_first:
            raise Interrupted
