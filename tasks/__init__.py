"""What is learned: one file per kind of problem, with its features, loss, metrics and predictions.

A task is a class with what `tasks.mlm.MaskedLM` has: `create` and `restore`, `save`, `build`, `rows`, `loss`,
`evaluate`, `metrics`, `metric_names`, `measure_texts`, `details`, `pictures`, `flops_per_row`, `probe`, `Options` and
`predict`.
Most of it `tasks.task.Task` and `tasks.text.TextTask` have.
`TASKS` is the registry of the names that `config.task` may have.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from errors import UserError
from models import parameters
from models.lora import Lora
from tasks.causal_lm import CausalLM
from tasks.classification import Classification
from tasks.features import Features
from tasks.image_classification import ImageClassification
from tasks.mlm import MaskedLM
from tasks.seq2seq import Seq2Seq
from tasks.vae import VariationalAutoencoding
from training.checkpoints import Checkpoints

TASKS: dict[str, Any] = {
    "mlm": MaskedLM,
    "causal_lm": CausalLM,
    "classification": Classification,
    "features": Features,
    "seq2seq": Seq2Seq,
    "image_classification": ImageClassification,
    "vae": VariationalAutoencoding,
}


def restore(
    workdir: str | Path, checkpoint: str = "last", log: Callable[[str], None] = print
) -> tuple[Any, nnx.Module]:
    """The task and the trained model of a run.

    Args:
        workdir: the run's folder.
        checkpoint: `last`, `best` by the run's `train.best_metric`, or a step.

    Raises:
        UserError: the folder holds no run, no such checkpoint, or one that the run's config does not fit.
    """
    task, params, model_state = restore_params(workdir, checkpoint, log)
    graphdef, _, _ = parameters.structure(task.build)
    return task, nnx.merge(graphdef, _lora(task.config).merge(params), model_state)


def restore_params(
    workdir: str | Path, checkpoint: str = "last", log: Callable[[str], None] = print
) -> tuple[Any, parameters.Tree, parameters.Tree]:
    """As `restore`, with the parameters and the model state as plain trees; adapters are apart, under `lora`."""
    workdir = Path(workdir)
    config = read_config(workdir)
    step = checkpoint_step(workdir, checkpoint, log)
    task = TASKS[config.task].restore(config, workdir, log)
    _, params, model_state = parameters.structure(task.build)
    template = {
        "params": jax.eval_shape(_lora(config).add, params, jax.random.key(0)),
        "model_state": model_state,
    }
    return task, *Checkpoints(workdir / "checkpoints").restore_params(step, template)


def _lora(config: ConfigDict) -> Lora:
    return Lora(**config.get("lora", {}))


def checkpoint_step(workdir: str | Path, checkpoint: str = "last", log: Callable[[str], None] = print) -> int:
    """The step that `last`, `best` or a number stands for; UserError if the run has no such checkpoint.

    The last is the last that is whole: what is wrong with those behind it is told.
    """
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    last, steps = checkpoints.newest_whole(log), checkpoints.steps()
    if last is None:
        raise UserError(
            str(workdir), "has no whole checkpoint", "Train it first: python train.py --config=… --workdir=…"
        )
    if checkpoint == "last":
        return last
    if checkpoint == "best":
        best = checkpoints.position(last).get("best", {}).get("step", -1)
        if best not in steps:
            mend = "Give last or a step; a run keeps its best one if it has config.train.best_metric."
            raise UserError("--checkpoint", "best, but the run follows no metric", mend)
        return best
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        mend = f"Give last, best or a step of {', '.join(map(str, steps))}."
        raise UserError("--checkpoint", repr(checkpoint), mend)
    return int(checkpoint)


def read_config(workdir: Path) -> ConfigDict:
    """The resolved config of a run, with tuples where JSON has lists."""
    path = workdir / "config.json"
    if not os.path.isfile(path):  # unlike Path.is_file it takes a name that is too long for one
        mend = "Name the folder of a run: train.py prints it first."
        raise UserError(
            "--workdir", f"{workdir} has no config.json" if os.path.isdir(workdir) else f"no folder {workdir}", mend
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        config = ConfigDict(_tuples(content))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:  # ConfigDict has names of its own
        raise UserError(str(path), f"is damaged ({error})", "Restore the file, or start the run anew.") from error
    if not isinstance(config.get("task"), str) or config.task not in TASKS:
        raise UserError(str(path), f"task {config.get('task')!r}", f"Known tasks: {', '.join(TASKS)}.")
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
