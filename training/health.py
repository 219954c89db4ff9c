"""The health of a run, by the loss of each of its steps: which were not finite, and which leap out of those before."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

WINDOW, ENOUGH = 128, 32  # steps that a loss is compared with, and how many of them there must be
SPIKE = 8.0  # standard deviations above their median, as the median of deviations tells it …
RISE = 0.5  # … and by this share of the median: where losses hardly differ, a small one is no spike


class Findings(NamedTuple):
    """What an interval of steps was like.

    Attributes:
        bad: the steps that were not finite, and so were left out.
        spikes: the steps whose loss leaped.
        lost: the first of these that were as many in a row as end a run; else empty.
    """

    bad: list[int]
    spikes: list[int]
    lost: list[int]


@dataclasses.dataclass
class Health:
    """Follows the losses of a run.

    Attributes:
        patience: how many bad steps in a row end the run.
        streak: the bad steps that there are in a row up to now.
        recent: the last good losses, the newest last.
        rollbacks: how often the run has gone back to a checkpoint.
    """

    patience: int = 1
    streak: list[int] = dataclasses.field(default_factory=list)
    recent: list[float] = dataclasses.field(default_factory=list)
    rollbacks: int = 0

    def look(self, first: int, losses: Sequence[float]) -> Findings:
        """Takes the losses of steps `first`, `first` + 1, …; one that is not finite stands for a bad step."""
        bad: list[int] = []
        spikes: list[int] = []
        lost: list[int] = []
        for step, loss in enumerate(map(float, losses), first):
            if not math.isfinite(loss):
                bad.append(step)
                self.streak = [*self.streak, step]
                if len(self.streak) >= self.patience:
                    lost = lost or self.streak
                continue
            self.streak = []
            if self._leaps(loss):
                spikes.append(step)
            self.recent = [*self.recent[1 - WINDOW :], loss]
        return Findings(bad, spikes, lost)

    def _leaps(self, loss: float) -> bool:
        if len(self.recent) < ENOUGH:
            return False
        middle = statistics.median(self.recent)
        deviation = 1.4826 * statistics.median(abs(other - middle) for other in self.recent)
        return loss > middle + max(SPIKE * deviation, RISE * abs(middle))

    def get_state(self) -> dict[str, Any]:
        """As JSON, for the checkpoint."""
        return {"streak": self.streak, "recent": self.recent, "rollbacks": self.rollbacks}

    def set_state(self, state: dict[str, Any]) -> None:
        self.streak, self.recent, self.rollbacks = state["streak"], state["recent"], state["rollbacks"]
