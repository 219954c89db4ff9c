"""Where a new run's weights come from: another run or a Hugging Face folder; and what the run takes over with them.

The first that applies: the checkpoint of the run's own workdir, `config.init_from`, or nothing, and all is drawn anew.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import tasks
from data.tokenizer import Tokenizer, load_tokenizer
from errors import UserError
from interop.folder import open_folder
from interop.hub import download
from models import parameters
from training.checkpoints import Checkpoints

FIELD = "config.init_from"
HUB = "hf:"
# Fields of a model that say how it is trained, not what its weights mean: the command line may change them.
FREE = ("dropout", "attention_dropout", "initializer_range")
# Fields that belong to a head, which the new run's own task decides on.
OF_HEADS = ("pooler", "num_labels")


@dataclasses.dataclass
class Origin:
    """Weights, and what they were made with.

    Attributes:
        name: as messages tell of it.
        model: the model's name and fields.
        tokenizer: the one whose ids the weights know; `target_tokenizer` that of the target, where it is another.
        labels: the labels of a classification head, in order; empty if there is none.
        weights: arrays by parameter path; empty if the run has a checkpoint of its own.
    """

    name: str
    model: dict[str, Any]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    weights: dict[str, Any]
    target_tokenizer: Tokenizer | None = None

    def drop(self, prefix: str) -> bool:
        """Leaves out the weights below a path; whether there were any."""
        kept = {path: weight for path, weight in self.weights.items() if not path.startswith(prefix)}
        dropped, self.weights = len(kept) < len(self.weights), kept
        return dropped


def open_origin(config: ConfigDict, workdir: Path, given: set[str], log: Callable[[str], None]) -> Origin | None:
    """What `config.init_from` names, or None; the config takes over the model's fields and the tokenizer.

    A run that was started before keeps what it was started from, also if that is gone or has come into being since.

    Args:
        given: the config names that stand on the command line, where a field of the model may not contradict.

    Raises:
        UserError: there is nothing to begin with, or it contradicts what was given.
    """
    kept = tasks.read_config(workdir) if (workdir / "config.json").is_file() else None
    if config.init_from.endswith("?"):
        wanted = config.init_from.removesuffix("?")
        found = kept.get("init_from", "") if kept else wanted if _is_there(wanted) else ""
        if not found and not kept:
            log(f"init_from: no run in {wanted} yet")
        config.init_from = found
    if not config.init_from:
        return None
    if kept and kept.get("init_from") == config.init_from and Checkpoints(workdir / "checkpoints").steps():
        tokenizer = load_tokenizer(workdir / "tokenizer")
        own = workdir / "target_tokenizer"
        target_tokenizer = load_tokenizer(own) if own.is_dir() else None
        labels = tuple(kept.data.get("labels", ()))
        origin = Origin(config.init_from, kept.model.to_dict(), tokenizer, labels, {}, target_tokenizer)
    elif _is_run(Path(config.init_from)):
        origin = _open_run(Path(config.init_from), log)
    else:
        origin = _open_foreign(config.init_from, log)
    _take_over(config, origin, given)
    return origin


def find_folder(name: str, field: str) -> Path:
    """The folder that `hf:NAME` was downloaded to, or the one that is named."""
    return download(name.removeprefix(HUB), field) if name.startswith(HUB) else Path(name).expanduser()


def describe(origin: Origin, account: parameters.Account) -> str:
    """The account of what was loaded, in a line."""

    def counted(paths: list[str]) -> str:
        tops = [path.split("/")[0] for path in paths]
        return ", ".join(f"{top} ({tops.count(top)})" for top in dict.fromkeys(tops))

    parts = [f"{len(account.loaded)} parameters loaded"]
    parts += [f"new: {counted(account.new)}"] * bool(account.new)
    parts += [f"left over: {counted(account.left_over)}"] * bool(account.left_over)
    return f"init_from {origin.name}: {' · '.join(parts)}"


def _is_there(wanted: str) -> bool:
    return wanted.startswith(HUB) or bool(
        Checkpoints(Path(wanted) / "checkpoints").steps()
        if _is_run(Path(wanted))
        else (Path(wanted) / "config.json").is_file()
    )


def _is_run(folder: Path) -> bool:
    """Whether the folder is a workdir of ours; Hugging Face folders have a config.json too, but no task."""
    try:
        return "task" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _open_run(folder: Path, log: Callable[[str], None]) -> Origin:
    if not Checkpoints(folder / "checkpoints").steps():
        mend = "Train it first, or name another run or a Hugging Face folder."
        raise UserError(FIELD, f"{folder} has no whole checkpoint", mend)
    task, model = tasks.restore(folder, "last", log)
    weights = parameters.flatten(parameters.split(model)[1])
    name = f"{folder} (step {tasks.checkpoint_step(folder)})"
    labels = tuple(task.config.data.get("labels", ()))
    target_tokenizer = getattr(task, "target_tokenizer", task.tokenizer)
    other = None if target_tokenizer is task.tokenizer else target_tokenizer
    return Origin(name, task.config.model.to_dict(), task.tokenizer, labels, weights, other)


def _open_foreign(name: str, log: Callable[[str], None]) -> Origin:
    found = open_folder(find_folder(name, FIELD), FIELD)
    if found.left_over:
        log(f"init_from: of no use here: {', '.join(found.left_over)}")
    model = {"name": found.name, **found.model}
    return Origin(name, model, found.tokenizer, found.labels, dict(found.params), found.target_tokenizer)


def _take_over(config: ConfigDict, origin: Origin, given: set[str]) -> None:
    model = config.model
    for name, value in origin.model.items():
        if name in OF_HEADS or name not in model:
            continue
        if name == "max_positions" and origin.model["position"] != "learned":
            continue  # no weight depends on it
        if f"model.{name}" in given and model[name] != value:
            if name in FREE:
                continue
            mend = f"Leave it out: {origin.name} decides it."
            raise UserError(f"config.model.{name}", f"{model[name]!r}, but {value!r} in {FIELD}", mend)
        model[name] = value
    if "data.tokenizer" in given and config.data.tokenizer != config.init_from:
        other = load_tokenizer(config.data.tokenizer)
        if other.vocabulary_hash != origin.tokenizer.vocabulary_hash:
            mend = "Leave it out: the weights bring the tokenizer whose ids they know."
            raise UserError("config.data.tokenizer", f"{config.data.tokenizer}, another than that of {FIELD}", mend)
    config.data.tokenizer = config.init_from
