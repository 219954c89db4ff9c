"""What every task on pictures has: splits of a source, their pixels, augmented and normalised."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.augment import Augmentation
from data.cache import fingerprint
from data.pictures import open_pictures, split_pictures
from data.pipeline import Batch, Rows
from data.pixels import Pixels, decode, read_pixels
from data.sources import Source, sample
from errors import UserError
from tasks.task import Log, Task, find_head

Targets = Callable[[Source, np.ndarray], Batch]  # (source, numbers of records) -> arrays with a row for each
SHOWN = 64  # pictures of a batch that are drawn


class PictureTask(Task):
    """Knows what pictures look like: their size, their channels, what they are normalised by.

    Args:
        config: the run's config; `model.image_size`, `model.channels`, `data.mean` and `data.std` are resolved in it.
    """

    def __init__(self, config: Any, log: Log = print):
        super().__init__(config, log)
        self.augment = Augmentation(config.data.augment, config.seed)
        self.evaluated: np.ndarray | None = None  # the pixels of the last split that was opened to be evaluated

    @classmethod
    def restore(cls, config: Any, folder: Path, log: Log) -> Any:
        """For a run that is there."""
        return cls(config, log)

    @staticmethod
    def measure(config: Any, log: Log) -> Source:
        """Learns from the training pictures what the config leaves open; returns them."""
        find_head(config)
        data, model = config.data, config.model
        Augmentation(data.augment, config.seed)
        train = open_split(config, "train")
        pixels = _pixels(config, train, log).pixels
        height, width, channels = pixels.shape[1:]
        if height != width:
            mend = f"Cut squares out of them: --config.data.image_size={min(height, width)}"
            raise UserError("config.data.train", f"pictures of {height} × {width} pixels", mend)
        for name, found in (("image_size", height), ("channels", channels)):
            if model[name] not in (0, found):
                mend = f"Leave it out, or bring the pictures to it: --config.data.{name}={model[name]}"
                raise UserError(f"config.model.{name}", f"{model[name]}, but pictures have {found}", mend)
            model[name] = found
        if not data.mean and not data.std:
            means, deviations = _mean_and_std(pixels)
            data.mean, data.std = tuple(means), tuple(deviations)
        for name in ("mean", "std"):
            numbers = all(isinstance(x, int | float) and (name == "mean" or x > 0) for x in data[name])
            if len(data[name]) != channels or not numbers:
                mend = f"Give {channels} number(s) from 0 to 1{' above 0' * (name == 'std')}, or neither mean nor std."
                raise UserError(f"config.data.{name}", repr(data[name]), mend)
        return train

    def rows(self, split: str, source: str = "") -> Rows:
        """The pictures of `train`, `valid`, `test`, or of another source; a row is one."""
        opened = open_split(self.config, split, source)
        found = _pixels(self.config, opened, self.log)
        model, shape = self.config.model, found.pixels.shape[1:]
        if shape != (model.image_size, model.image_size, model.channels):
            value = f"pictures of {' × '.join(map(str, shape))}, but {model.image_size} × {model.image_size} × "
            mend = "Set config.data.image_size and channels, so that all are brought to the same."
            raise UserError(opened.name, f"{value}{model.channels} in training", mend)
        targets = self.targets(opened, found.records)
        training = split == "train" and not source
        if not training:
            self.evaluated = found.pixels

        def load(rows: np.ndarray, epochs: np.ndarray) -> Batch:
            present, chosen = rows >= 0, np.maximum(rows, 0)
            pixels = found.pixels[chosen]
            if training:
                pixels = self.augment(pixels, rows, epochs)
            batch = {name: array[chosen] for name, array in targets.items()}
            return batch | {"pixels": pixels, "index": rows.astype(np.int32), "present": present.astype(np.float32)}

        size = " × ".join(map(str, shape))
        skipped = f" · {found.skipped:,} that cannot be decoded left out" if found.skipped else ""
        key = fingerprint(found.fingerprint, *(array.tobytes() for array in targets.values()))
        return Rows(
            count=len(found),
            load=load,
            records=lambda rows: np.unique(found.records[rows[rows >= 0]]),
            fingerprint=key,
            summary=f"{len(found):,} pictures of {size}{skipped}",
        )

    def targets(self, source: Source, records: np.ndarray) -> Batch:
        """What is to be learned of these records, arrays with a row for each."""
        return {}

    def normalized(self, pixels: jax.Array) -> jax.Array:
        """Floats [batch, height, width, channels] that a model reads, of bytes."""
        mean, std = (np.array(self.config.data[name], np.float32) for name in ("mean", "std"))
        return pixels.astype(jnp.float32) * (1 / (255 * std)) - mean / std

    def flops_per_row(self) -> int:
        """Floating-point operations of the matrix products of one forward pass over a picture."""
        return self.head.flops(self.model_config)

    def examples(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        told = []
        for number, pixels in zip(batch["index"][:2], batch["pixels"], strict=False):
            size = " × ".join(map(str, pixels.shape))
            told.append(
                f"picture {number}, {size}, bytes from {pixels.min()} to {pixels.max()}, mean {pixels.mean():.1f}"
            )
        return told

    def batch_pictures(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What training sees of its first batch."""
        from evaluation.pictures import picture_grid, render

        return {"augmented" if self.config.data.augment else "pictures": render(picture_grid(batch["pixels"][:SHOWN]))}

    def picture_batches(self, lines: Iterator[str], batch_size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Paths in groups of `batch_size`, with their pixels: uint8 [batch_size, height, width, channels].

        Raises:
            UserError: the batch size is no number above 0, or a line names no picture of the size that was learned.
        """
        if batch_size < 1:
            raise UserError("--batch_size", batch_size, "Give a number above 0.")
        model, data = self.config.model, self.config.data
        shape = (model.image_size, model.image_size, model.channels)
        while paths := list(itertools.islice(lines, batch_size)):
            pixels = np.zeros((batch_size, *shape), np.uint8)
            for i, path in enumerate(paths):
                try:
                    # A grey picture may be shown to a model of colours, and the other way round.
                    picture = decode(Path(path).expanduser(), size=data.image_size, channels=model.channels)
                except Exception as error:  # Pillow has no kind of its own for what it cannot read
                    reason = getattr(error, "strerror", None) or "is no picture that can be decoded"
                    raise UserError("--input", f"{path} ({reason})", "Give the path of a picture a line.") from error
                if picture.shape != shape:
                    value = f"{path} has {picture.shape[0]} × {picture.shape[1]} pixels"
                    mend = f"The run was trained on {shape[0]} × {shape[1]}: bring the picture to that size."
                    raise UserError("--input", value, mend)
                pixels[i] = picture
            yield paths, pixels

    def probe_pixels(self) -> np.ndarray:
        """Two pictures that are built in: a gradient of grey, and noise."""
        model = self.config.model
        shape = (model.image_size, model.image_size, model.channels)
        gradient = np.broadcast_to(np.linspace(0, 255, model.image_size)[:, None, None], shape)
        noise = np.random.default_rng(0).integers(0, 256, shape)
        return np.stack([gradient, noise]).astype(np.uint8)


def open_split(config: Any, split: str, source: str = "") -> Source:
    """The pictures of `train`, `valid` or `test`, or of another source; those of `valid` are held out of the training
    source where none is named.
    """
    data = config.data

    def opened(spec: str, field: str) -> Source:
        return open_pictures(spec, image=data.image, label=data.label, field=field)

    if source:
        return opened(source, "--data")
    if split == "test" and not data.test:
        raise UserError("--split", "test, but the run has no config.data.test", "Give --data=SOURCE instead.")
    if split == "test" or (split == "valid" and data.valid):
        return opened(data[split], f"config.data.{split}")
    train = opened(data.train, "config.data.train")
    if not data.valid:
        train, valid = split_pictures(train, data.holdout, data.holdout_share)
        if split == "valid":
            return valid
    return sample(train, data.limit)


def _pixels(config: Any, source: Source, log: Log) -> Pixels:
    data = config.data
    return read_pixels(source, size=data.image_size, channels=data.channels, skip=data.on_error == "skip", log=log)


def _mean_and_std(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Of each channel, from 0 to 1, to six digits; a deviation is never 0."""
    counts = np.zeros((pixels.shape[-1], 256))
    for begin in range(0, len(pixels), 1024):
        for channel in range(pixels.shape[-1]):
            counts[channel] += np.bincount(pixels[begin : begin + 1024, ..., channel].ravel(), minlength=256)
    levels, shares = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    means = shares @ levels
    deviations = np.sqrt(np.maximum(shares @ levels**2 - means**2, 1e-6))
    return [round(float(x), 6) for x in means], [round(float(x), 6) for x in deviations]
