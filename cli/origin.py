"""Where a new run's weights come from: another run or a Hugging Face folder; and what the run takes over with them.

The first that applies: the checkpoint of the run's own workdir, `config.init_from`, or nothing, and all is drawn anew.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import tasks
from cli.config import complete_model
from data.tokenizer import Tokenizer, load_tokenizer
from errors import UserError
from interop.folder import open_folder
from interop.hub import download
from models import MODELS, parameters
from training.checkpoints import Checkpoints

FIELD = "config.init_from"
HUB = "hf:"
# Fields of a model that say how it is trained, not what its weights mean: the command line may change them.
FREE = ("dropout", "attention_dropout", "stochastic_depth", "initializer_range", "remat", "scan")
# Fields that belong to a head, which the new run's own task decides on.
OF_HEADS = ("pooler", "num_labels")
# Fields that the new run's own pictures decide on.
OF_PICTURES = ("image_size",)


@dataclasses.dataclass
class Origin:
    """Weights, and what they were made with.

    Attributes:
        name: as messages tell of it.
        model: the model's name and fields.
        labels: the labels of a classification head, in order; empty if there is none.
        weights: arrays by the path of a parameter or a statistic; empty if the run has a checkpoint of its own.
        tokenizer: the one whose ids the weights know; `target_tokenizer` that of the target, where it is another.
        normalization: what the pictures that the weights know were normalised by, mean and deviation of each channel.
    """

    name: str
    model: dict[str, Any]
    labels: tuple[str, ...]
    weights: dict[str, Any]
    tokenizer: Tokenizer | None = None
    target_tokenizer: Tokenizer | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

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
        folders = [workdir / "tokenizer", workdir / "target_tokenizer"]
        tokenizer, target_tokenizer = (load_tokenizer(own) if own.is_dir() else None for own in folders)
        origin = _origin(config.init_from, kept, {}, tokenizer, target_tokenizer)
    elif _is_run(Path(config.init_from)):
        origin = _open_run(Path(config.init_from), log)
    else:
        origin = _open_foreign(config.init_from, log)
    _take_over(config, origin, given)
    return origin


def find_folder(name: str, field: str) -> Path:
    """The folder that `hf:NAME` was downloaded to, or the one that is named."""
    return download(name.removeprefix(HUB), field) if name.startswith(HUB) else Path(os.path.expanduser(name))


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
    _, params, model_state = parameters.split(model)
    weights = parameters.flatten(params) | parameters.flatten(model_state)
    name = f"{folder} (step {tasks.checkpoint_step(folder)})"
    tokenizer = getattr(task, "tokenizer", None)
    target_tokenizer = getattr(task, "target_tokenizer", tokenizer)
    return _origin(name, task.config, weights, tokenizer, None if target_tokenizer is tokenizer else target_tokenizer)


def _origin(
    name: str, config: ConfigDict, weights: dict[str, Any], tokenizer: Tokenizer | None, target: Tokenizer | None
) -> Origin:
    """Of a run of ours."""
    data = config.data
    normalization = tuple(data.get("mean", ())), tuple(data.get("std", ()))
    labels = tuple(data.get("labels", ()))
    return Origin(name, config.model.to_dict(), labels, weights, tokenizer, target, normalization)


def _open_foreign(name: str, log: Callable[[str], None]) -> Origin:
    found = open_folder(find_folder(name, FIELD), FIELD)
    if found.left_over:
        log(f"init_from: of no use here: {', '.join(found.left_over)}")
    model = {"name": found.name, **found.model}
    own = found.tokenizer, found.target_tokenizer, found.normalization
    return Origin(name, model, found.labels, dict(found.params), *own)


def _take_over(config: ConfigDict, origin: Origin, given: set[str]) -> None:
    family = origin.model["name"]
    if config.task not in MODELS[family].heads:
        value = f"{origin.name} holds a {family}, which has no head for config.task={config.task}"
        raise UserError(FIELD, value, "Name weights of another model, or another experiment.")
    if family != config.model.name:
        complete_model(config, family)
    model = config.model
    for name, value in origin.model.items():
        if name in (*OF_HEADS, *OF_PICTURES) or name not in model:
            continue
        if name == "max_positions" and origin.model["position"] != "learned":
            continue  # no weight depends on it
        if f"model.{name}" in given and model[name] != value:
            if name in FREE:
                continue
            mend = f"Leave it out: {origin.name} decides it."
            raise UserError(f"config.model.{name}", f"{model[name]!r}, but {value!r} in {FIELD}", mend)
        model[name] = value
    if origin.tokenizer is None:
        return
    if "data.tokenizer" in given and config.data.tokenizer != config.init_from:
        other = load_tokenizer(config.data.tokenizer)
        if other.vocabulary_hash != origin.tokenizer.vocabulary_hash:
            mend = "Leave it out: the weights bring the tokenizer whose ids they know."
            raise UserError("config.data.tokenizer", f"{config.data.tokenizer}, another than that of {FIELD}", mend)
    config.data.tokenizer = config.init_from
