"""What a run writes down: metrics.jsonl, one object a record, and the same through tensorboardX."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorboardX

from training import rules

logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # a metric that is undefined is drawn as a gap


class Logbook:
    """The records of one run.

    Args:
        workdir: the run's folder.
        step: where the run goes on; records of later steps, left by a run that was cut off, are taken out.
        quiet: write nothing.
    """

    def __init__(self, workdir: Path, step: int = 0, quiet: bool = False):
        self._quiet = quiet
        if quiet:
            return
        self._workdir = workdir
        self._open(step)

    def _open(self, step: int) -> None:
        path = self._workdir / "metrics.jsonl"
        _cut_back(path, step)
        self._file = path.open("a", encoding="utf-8")
        events = str(self._workdir / "tensorboard")
        self._writer = tensorboardX.SummaryWriter(events, purge_step=step + 1 if step else None)

    def go_back(self, step: int) -> None:
        """Takes out the records of later steps."""
        if not self._quiet:
            self.close()
            self._open(step)

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """One record; TensorBoard gets each value under `split/name`. What is not finite becomes null in JSON."""
        if self._quiet:
            return
        record: dict[str, Any] = {"step": step, "split": split}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """A Markdown text."""
        if self._quiet:
            return
        self._writer.add_text(tag, text, step)

    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """An image, uint8 [height, width, 3]."""
        if self._quiet:
            return
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def histograms(self, step: int, tag: str, tree: Any) -> None:
        """The counts that the compiled step made of each leaf, under `tag/PATH`."""
        if self._quiet:
            return
        leaves: dict[str, dict[str, np.ndarray]] = {}
        for path, value in zip(rules.paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True):
            leaf, _, part = path.rpartition("/")
            leaves.setdefault(leaf, {})[part] = value
        for path, counted in leaves.items():
            low, high, counts = float(counted["low"]), float(counted["high"]), counted["counts"]
            if not (math.isfinite(low) and math.isfinite(high) and counts.sum()):
                continue
            limits = np.linspace(low, max(high, low + 1e-30), len(counts) + 1)[1:]
            self._writer.add_histogram_raw(
                f"{tag}/{path}", low, high, int(counts.sum()), float(counted["sum"]), float(counted["square"]),
                limits.tolist(), counts.tolist(), step,
            )  # fmt: skip

    def close(self) -> None:
        if self._quiet:
            return
        self._file.close()
        self._writer.close()


def _cut_back(path: Path, step: int) -> None:
    """Drops the records behind `step` and a half-written last line; the file is replaced in one move."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            written = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError, RecursionError):  # half a line, or none of ours
            continue
        if isinstance(written, int) and written <= step:
            kept.append(line + "\n")
    scratch = path.with_suffix(".jsonl.new")
    scratch.write_text("".join(kept), encoding="utf-8")
    scratch.replace(path)
