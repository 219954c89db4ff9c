"""What every task has: its config, and the model that the config names, with the head that the task needs."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from errors import UserError
from models import MODELS

Log = Callable[[str], None]


def find_head(config: Any) -> Any:
    """The module of `config.model.name` that answers what `config.task` asks; UserError if there is none."""
    heads = MODELS[config.model.name].heads
    if config.task not in heads:
        value = f"{config.model.name} has no head for config.task={config.task}"
        raise UserError("config.model.name", value, f"It has heads for {', '.join(heads)}.")
    return heads[config.task]


class Task(abc.ABC):
    """Builds the model, and has the hooks that not every task has something to say to.

    Args:
        config: the run's config; what follows from the data has been resolved in it, and the model's fields are here.
    """

    def __init__(self, config: Any, log: Log = print):
        self.config = config
        self.log = log
        self.head = find_head(config)
        model = config.model
        self.model_config = MODELS[model.name].config(**{k: v for k, v in model.items() if k != "name"})
        for name, value in dataclasses.asdict(self.model_config).items():
            model[name] = value

    @staticmethod  # noqa: B027 (not every task has keys of its own)
    def check(config: Any) -> None:
        """Raises UserError for a wrong value of the task's own keys."""

    def save(self, folder: Path) -> None:  # noqa: B027 (not every task has more than the config)
        """Writes what `restore` reads beside the config."""

    def fingerprints(self) -> dict[str, str]:
        """Of what the task has read beside the rows, for run.json."""
        return {}

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.head(self.model_config, rngs, self.config.dtype)

    @abc.abstractmethod
    def probe(self, model: Any) -> dict[str, np.ndarray]:
        """What the model says of something that is built in, by name: all hidden states, and the head's numbers. Of two
        runs with the same weights it is the same.
        """

    def full_rows(self, sums: Mapping[str, float]) -> float:
        """How many rows without padding would hold what an interval has learned from."""
        return sums["examples"]

    @abc.abstractmethod
    def examples(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """What stands in the first rows of a training batch, for people to read."""

    def batch_pictures(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures of what a training batch holds, by name: uint8 [height, width, 3]."""
        return {}

    def measure_texts(self, model: nnx.Module, split: str, source: str = "") -> tuple[dict[str, float], dict[str, Any]]:
        """What can be said of the texts that the model writes for a split: metrics, and more as JSON."""
        return {}, {}

    def details(self, outputs: Any) -> dict[str, Any]:
        """What an evaluation says beside its metrics, as JSON."""
        return {}

    def pictures(self, outputs: Any, model: nnx.Module) -> dict[str, np.ndarray]:
        """Pictures of an evaluation's outputs, and of what the model does, by name: uint8 [height, width, 3]."""
        return {}
