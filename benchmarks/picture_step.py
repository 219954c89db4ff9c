"""How fast the bare step of a picture classifier is: pictures/s, MFU, and what share of it its input takes.

    python -m benchmarks.picture_step [--experiment=vit] [--rows=64] [--size=32] [--augment=crop:4,flip,rand:2:9]

`vit` is 6 layers × 192 with patches of 4 × 4, `resnet` a ResNet-18 with the 3 × 3 stem, on pictures of noise. The step
is the one that train.py compiles; `input_ms` is what making a batch takes beside it, on one core. One JSON object.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cli import environment  # isort: skip  # noqa: F401  (sets what JAX reads when it starts)

import numpy as np

from benchmarks.bare_step import measure, prepare
from benchmarks.report import tell
from cli import commandline
from configs import vit_classify
from errors import UserError

EXPERIMENTS = {"vit": "cifar10", "resnet": "cifar10_resnet"}
FLAGS: dict[str, Any] = {"experiment": "vit", "rows": 64, "size": 32, "steps": 20, "dtype": "float32"}
FLAGS |= {"augment": "crop:4,flip,rand:2:9"}
PICTURES = 512


def main(argv: list[str]) -> int:
    flags = commandline.parse(argv, FLAGS, __doc__ or "")
    if flags["experiment"] not in EXPERIMENTS:
        raise UserError("--experiment", repr(flags["experiment"]), f"Choose {' or '.join(EXPERIMENTS)}.")
    config = vit_classify.get_config(EXPERIMENTS[flags["experiment"]])
    config.data.mixup = config.data.cutmix = config.train.ema = 0.0
    config.data.augment, config.train.batch_size, config.dtype = flags["augment"], flags["rows"], flags["dtype"]
    if flags["experiment"] == "vit":
        config.model.stochastic_depth = 0.0
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.npz"
        images = generator.integers(0, 256, (PICTURES, flags["size"], flags["size"], 3)).astype(np.uint8)
        np.savez(path, image=images, label=np.arange(PICTURES) % 10)
        config.data.train = config.data.valid = f"npz:{path}"
        bare = prepare(config)
        measured = measure(bare, flags["steps"])
        rows, seconds = bare.task.rows("train"), []
        for i in range(20):
            chosen = generator.integers(0, PICTURES, flags["rows"])
            start = time.perf_counter()
            rows.load(chosen, np.full(len(chosen), i))
            seconds.append(time.perf_counter() - start)
    measured["input_ms"] = round(1e3 * statistics.median(seconds), 2)
    tell("picture_step", [{**flags, **measured}])
    return 0


if __name__ == "__main__":
    commandline.run(main)
