"""From a config file and the command line to one checked config.

A field's value is the command line's, else the file's, else that of the model's dataclass or of configs/base.py.
"""

import dataclasses
import difflib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from cli import commandline
from configs import base
from errors import UserError
from models import MODELS
from tasks import TASKS
from tasks.task import find_head
from training import phases
from training.optimizer import OPTIMIZERS, SCHEDULES

# What may differ between two starts of one run; see README.
MAY_CHANGE = tuple(f"train.{name}" for name in ("steps", "log_every", "eval_every", "checkpoint_every", "keep"))
MAY_CHANGE += ("mesh.data", "mesh.fsdp", "mesh.tensor")
MOST_STEPS = 2**31  # they are counted in an int32


class Command(NamedTuple):
    """What `train.py` was asked for.

    Attributes:
        config: checked.
        workdir: the run's folder.
        given: the names of the config that stand on the command line: `train.steps`.
        verify_checkpoints: only to say which checkpoints are whole.
        dry_run: only to say what would be done.
        profile: START:STOP, the steps that are traced.
    """

    config: ConfigDict
    workdir: Path
    given: set[str]
    verify_checkpoints: bool
    dry_run: bool
    profile: str


def from_command_line(argv: Sequence[str], usage: str) -> Command:
    """What stands in `train.py`'s arguments."""
    flag_names = {"config": "", "workdir": "", "verify_checkpoints": False, "dry_run": False, "profile": ""}
    chosen = commandline.given(argv, "config")
    if not chosen:
        if any(word.lstrip("-").startswith("h") for word in argv[1:]):
            commandline.parse(argv, flag_names, usage)
        raise UserError("--config", "is missing", "Name an experiment: --config=configs/bert_mlm.py")
    config, path, variant = _load(chosen)
    complete_model(config, commandline.given(argv, "config.model.name"))
    defaults = flag_names | {f"config.{name}": value for name, value in flatten(config).items()}
    values = commandline.parse(argv, defaults, usage)
    for name, value in values.items():
        if name.startswith("config."):
            _set(config, name.removeprefix("config."), value)
    check(config)
    workdir = values["workdir"] or Path("runs") / "-".join(filter(None, (path.stem, variant)))
    given = {name for name in flatten(config) if commandline.given(argv, f"config.{name}")}
    modes = values["verify_checkpoints"], values["dry_run"], values["profile"]
    return Command(config, Path(workdir), given, *modes)


def flatten(config: Any) -> dict[str, Any]:
    """`{"train.steps": 100, …}`; tuples stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def as_json(config: Any) -> dict[str, Any]:
    """The config as config.json holds it: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Any, new: Any) -> list[str]:
    """What keeps two configs from being the same run, as `train.batch_size 32 -> 64`."""
    # A run of before a key existed went by the key's default.
    defaults = base.get_config("texts" if "seq_len" in new.data else "pictures")
    defaults.model = {field.name: field.default for field in dataclasses.fields(MODELS[new.model.name].config)}
    after = flatten(as_json(new))
    before = {name: value for name, value in flatten(as_json(defaults)).items() if name in after}
    before |= flatten(as_json(old))
    return [
        f"{name} {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in sorted(before.keys() | after.keys())
        if name not in MAY_CHANGE and before.get(name) != after.get(name)
    ]


def check_alike(command: Command) -> None:
    """Raises UserError in every process of a run on several hosts, unless all were asked for the same."""
    if jax.process_count() == 1:
        return
    own = {"workdir": str(command.workdir), **flatten(as_json(command.config))}
    told = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(told)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(told)] = told
    everyone = multihost_utils.process_allgather(padded)
    first, *others = (
        json.loads(row[:size].tobytes()) for row, size in zip(np.asarray(everyone), sizes.ravel(), strict=True)
    )
    for number, other in enumerate(others, 1):
        names = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if names:
            shown = "; ".join(
                f"{name} {first.get(name)} in process 0, {other.get(name)} in {number}" for name in names[:6]
            )
            raise UserError("the processes", f"were asked for different things: {shown}", "Start all of them alike.")


def resolve_steps(config: ConfigDict, rows: int) -> None:
    """Turns `train.epochs` into `train.steps`, now that the number of rows is known, and checks the warm-up with it."""
    train = config.train
    if train.epochs:
        steps = train.epochs * rows / train.batch_size
        if steps >= MOST_STEPS:
            raise UserError("config.train.epochs", f"{train.epochs}, some {steps:.0e} steps", "Give fewer.")
        train.steps = max(1, round(steps))
    if config.optimizer.warmup_steps > train.steps:
        value = f"{config.optimizer.warmup_steps} of {train.steps} steps"
        raise UserError("config.optimizer.warmup_steps", value, "Make the warm-up shorter than the run.")


def check(config: ConfigDict) -> None:
    """Raises UserError for the first value that is out of its range."""
    flat = flatten(config)
    for name, (fits, mend) in RANGES.items():
        if name in flat and not fits(flat[name]):
            raise UserError(f"config.{name}", repr(flat[name]), mend)
    find_head(config)
    train = config.train
    if bool(train.steps) == bool(train.epochs):
        value = f"{train.steps}, and config.train.epochs {train.epochs}"
        raise UserError("config.train.steps", value, "Give one of the two, and 0 for the other.")
    if train.batch_size % train.accumulate:
        value = f"{train.accumulate} micro-batches do not divide batch_size {train.batch_size}"
        raise UserError("config.train.accumulate", value, "Choose a divisor of the batch size.")
    if config.optimizer.schedule == "exponential" and not config.optimizer.final_share > 0:
        raise UserError("config.optimizer.final_share", "0 with schedule exponential", "Give a share above 0: 0.01.")
    if train.steps:
        resolve_steps(config, rows=0)
    phases.check(config.optimizer.rules, config.optimizer.phases, config.optimizer.layer_decay)


Range = tuple[Callable[[Any], bool], str]


def _at_least(lowest: int) -> Range:
    return (lambda value: value >= lowest), f"Give a number of at least {lowest}."


def _one_of(*choices: str) -> Range:
    return (lambda value: value in choices), f"Choose {', '.join(choices)}."


_POSITIVE: Range = (lambda value: value > 0), "Give a number above 0."
_SHARE: Range = (lambda value: 0 <= value < 1), "Give a share from 0 to below 1."

RANGES: dict[str, Range] = {
    "seed": ((lambda value: 0 <= value < 2**63), "Give a whole number from 0 to below 2**63."),
    "task": _one_of(*TASKS),
    "dtype": _one_of("float32", "bfloat16"),
    "data.train": (bool, "Name a source, such as text:PATH or pydocs."),
    "data.document": _one_of("paragraph", "line", "file"),
    "data.holdout": _one_of("hash", "tail"),
    "data.holdout_share": ((lambda value: 0 < value < 1), "Give a share between 0 and 1, such as 0.05."),
    "data.limit": _at_least(0),
    "data.seq_len": _at_least(8),
    "data.image_size": _at_least(0),
    "data.channels": ((lambda value: value in (0, 1, 3)), "Give 1 for grey, 3 for colours, or 0 for what there is."),
    "data.on_error": _one_of("stop", "skip"),
    "optimizer.name": _one_of(*OPTIMIZERS),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.schedule": _one_of(*SCHEDULES),
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.warmup_share": _SHARE,
    "optimizer.final_share": ((lambda value: 0 <= value <= 1), "Give a share from 0 to 1."),
    "optimizer.b1": _SHARE,
    "optimizer.b2": _SHARE,
    "optimizer.epsilon": _POSITIVE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.l1": _at_least(0),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.layer_decay": ((lambda value: 0 < value <= 1), "Give a factor above 0, at most 1, such as 0.9."),
    "lora.rank": _at_least(0),
    "lora.alpha": _POSITIVE,
    "train.steps": ((lambda value: 0 <= value < MOST_STEPS), f"Give a number from 0 to {MOST_STEPS - 1}."),
    "train.epochs": _at_least(0),
    "train.batch_size": _at_least(1),
    "train.accumulate": _at_least(1),
    "train.log_every": _at_least(1),
    "train.eval_every": _at_least(0),
    "train.eval_batches": _at_least(0),
    "train.checkpoint_every": _at_least(0),
    "train.keep": _at_least(1),
    "train.patience": _at_least(0),
    "train.bad_steps": _at_least(1),
    "train.rollbacks": _at_least(0),
    "train.histogram_every": _at_least(0),
    "train.ema": _SHARE,
    **dict.fromkeys(
        ("mesh.data", "mesh.fsdp", "mesh.tensor"),
        ((lambda value: value == -1 or value > 0), "Give a number of devices, or -1 for those that are left."),
    ),
}


def _load(chosen: str) -> tuple[ConfigDict, Path, str]:
    """The config of `FILE.py[:VARIANT]`, with the file and the variant."""
    name, _, variant = chosen.partition(".py:")
    path = Path(name if name.endswith(".py") else f"{name}.py")
    if not os.path.isfile(path):  # unlike Path.is_file it takes a name that is too long for one
        known = sorted(p.as_posix() for p in Path(__file__).parent.parent.joinpath("configs").glob("*.py"))
        names = [f"configs/{Path(p).name}" for p in known if Path(p).stem not in ("__init__", "base")]
        near = difflib.get_close_matches(path.as_posix(), names, n=1) or names
        raise UserError("--config", f"no file {path}", f"Did you mean {near[0]}?")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except UserError:
        raise
    except Exception as error:  # whatever the user's own file does wrong
        raise UserError(str(path), f"{type(error).__name__}: {error}", "Mend the config file.") from error
    pictures = flatten(base.get_config("pictures"))
    known = [name for name in flatten(base.get_config("texts")) if name in pictures]
    have = flatten(config) if isinstance(config, ConfigDict) else {}
    missing = [name for name in known if name not in have]
    if missing:
        raise UserError(str(path), f"get_config() gives no {missing[0]}", "Let it begin with base.get_config().")
    return config, path, variant


def complete_model(config: ConfigDict, other_name: str = "") -> None:
    """Lists every field of the model's dataclass; with another model, the file's fields that it lacks are dropped."""
    name = other_name or config.model.name
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1) or sorted(MODELS)
        raise UserError("config.model.name", repr(name), f"Did you mean {near[0]}? Models: {', '.join(MODELS)}.")
    fields = {field.name: field.default for field in dataclasses.fields(MODELS[name].config)}
    for key in list(config.model.keys()):
        if key != "name" and key not in fields:
            if name == config.model.name:
                near = difflib.get_close_matches(key, fields, n=1) or sorted(fields)
                raise UserError(f"config.model.{key}", f"{name} has no such field", f"Did you mean {near[0]}?")
            del config.model[key]
    for key, default in fields.items():
        if key not in config.model:
            config.model[key] = default


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[last] = value
