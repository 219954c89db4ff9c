"""Evaluates a run on a split, or on other data, and writes DIR/eval/SPLIT.json.

python eval.py --workdir=DIR [--checkpoint=last|best|STEP] [--split=valid|test] [--data=SOURCE]
"""

import math
from pathlib import Path

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import jax
from PIL import Image

import tasks
from cli import commandline, workdir
from data.cache import fingerprint
from data.pipeline import eval_batches
from errors import UserError
from models import parameters
from training import sharding
from training.step import evaluate, make_eval_step

FLAGS = {"workdir": "", "checkpoint": "last", "split": "valid", "data": ""}


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    if not flags["workdir"]:
        raise UserError("--workdir", "is missing", "Name the folder of a run: --workdir=runs/NAME")
    if flags["split"] not in ("valid", "test"):
        raise UserError("--split", repr(flags["split"]), "Choose valid or test.")
    folder = Path(flags["workdir"])
    step = tasks.checkpoint_step(folder, flags["checkpoint"])
    task, model = tasks.restore(folder, flags["checkpoint"])
    rows = task.rows(flags["split"], flags["data"])
    print(f"step {step} · {rows.summary}", flush=True)

    batch_size = task.config.train.batch_size
    mesh = sharding.make_mesh(batch_size)
    graphdef, params, model_state = parameters.split(model)
    state = sharding.put_replicated({"params": params, "model_state": model_state}, mesh)
    eval_step = jax.jit(
        make_eval_step(parameters.functional(graphdef, task.evaluate)), out_shardings=sharding.replicated(mesh)
    )
    sums, outputs = evaluate(
        eval_step, state, (sharding.put_batch(batch, mesh) for batch in eval_batches(rows, batch_size))
    )

    name = f"data-{fingerprint(flags['data'])[:8]}" if flags["data"] else flags["split"]
    source = flags["data"] or task.config.data[flags["split"]] or f"{task.config.data.train} (held out)"
    written, shown = task.measure_texts(model, flags["split"], flags["data"])
    values = task.metrics(sums, outputs) | written
    numbers = {metric: value if math.isfinite(value) else None for metric, value in values.items()}
    result = {"step": step, "split": name, "source": source, **numbers, **task.details(outputs), **shown}
    target = folder / "eval" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    workdir.write_json(target, result)
    for picture, pixels in task.pictures(outputs, model).items():
        Image.fromarray(pixels).save(target.parent / f"{name}.{picture}.png")
    for metric, value in values.items():
        print(f"{metric:20} {value:.6g}")
    print(f"written to {target}")
    return 0


if __name__ == "__main__":
    commandline.run(main)
