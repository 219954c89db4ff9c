"""The best evaluation of a run so far: which checkpoint to keep for it, and when to stop for want of a better one."""

import dataclasses
import math
from typing import Any

from errors import UserError

LOWER_IS_BETTER = ("loss", "perplexity", "mean_squared_error", "mean_absolute_error")


@dataclasses.dataclass
class Best:
    """Follows one metric over the evaluations.

    Attributes:
        metric: its name; empty: none is followed.
        patience: after so many evaluations without a better value the run ends; 0: never.
        step, value: of the best evaluation so far; -1 and None before the first.
        waited: evaluations since then.
    """

    metric: str = ""
    patience: int = 0
    step: int = -1
    value: float | None = None
    waited: int = 0

    def check(self, names: list[str]) -> None:
        """Raises UserError unless the metric is one of those that an evaluation gives."""
        if self.metric and self.metric not in names:
            mend = f"An evaluation gives {', '.join(names)}."
            raise UserError("config.train.best_metric", repr(self.metric), mend)
        if self.patience and not self.metric:
            mend = "Name the metric that shall get better: --config.train.best_metric=loss"
            raise UserError("config.train.patience", f"{self.patience} without config.train.best_metric", mend)

    def update(self, step: int, values: dict[str, float]) -> bool:
        """Takes an evaluation; whether it is the best so far. What is not a number never is."""
        if not self.metric:
            return False
        new = float(values[self.metric])
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        if math.isfinite(new) and (self.value is None or sign * new > sign * self.value):
            self.step, self.value, self.waited = step, new, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.waited

    def get_state(self) -> dict[str, Any]:
        """As JSON, for the checkpoint."""
        return {"step": self.step, "value": self.value, "waited": self.waited}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step, self.value, self.waited = state["step"], state["value"], state["waited"]
