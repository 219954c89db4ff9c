"""Pictures of any kind of file as one array of pixels, of one size, in a memory-mapped cache."""

import concurrent.futures
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.cache import cached_folder, fingerprint
from data.sources import Source
from errors import UserError

VERSION = 1  # of the decoding: raise it when the same files give other pixels
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name
_TOGETHER = 256  # pictures that are decoded before they are written


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pictures of a source.

    Attributes:
        pixels: uint8 [pictures, height, width, channels].
        records: the number in the source of each; a picture that could not be decoded may be missing.
        skipped: how many are missing.
        fingerprint: changes with the content.
    """

    pixels: np.ndarray
    records: np.ndarray
    skipped: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.pixels)


def read_pixels(
    source: Source, *, size: int = 0, channels: int = 0, skip: bool = False, log: Callable[[str], None] = print
) -> Pixels:
    """All pictures of a source, decoded once and then read from the cache.

    Args:
        size: the side of the square that pictures are brought to; 0 for pictures that are all of one size.
        channels: 1 (grey) or 3 (colours) that all are brought to; 0 for pictures that all have as many.
        skip: leave out what cannot be decoded, and count it.

    Raises:
        UserError: a picture cannot be decoded, or they differ.
    """
    key = fingerprint(VERSION, source.fingerprint, size, channels, str(skip))

    def build(folder: Path) -> None:
        log(f"pictures: decoding {source.name}")
        records, shape = [], None
        with (folder / "pixels").open("wb") as stream:
            for index, picture in _decoded(source, size, channels, skip):
                if shape is None:
                    shape, first = picture.shape, index
                if picture.shape != shape:
                    raise _differing(source, index, picture.shape, first, shape)
                stream.write(picture.tobytes())
                records.append(index)
        if shape is None:
            raise UserError(source.name, "holds no picture that can be decoded", "Name pictures: PNG, JPEG and others.")
        about = {"shape": [len(records), *shape], "skipped": len(source) - len(records)}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        np.save(folder / "records.npy", np.array(records, np.int64))

    folder = cached_folder("pictures", key, build)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    pixels = np.memmap(folder / "pixels", np.uint8, "r", shape=tuple(about["shape"]))
    return Pixels(pixels, np.load(folder / "records.npy"), about["skipped"], key)


def decode(image: Any, *, size: int = 0, channels: int = 0) -> np.ndarray:
    """One picture, uint8 [height, width, channels].

    A photograph is turned as its camera says. Palettes and transparency become colours. Brought to a `size`, the
    shorter side is, and the middle is cut out.

    Args:
        image: an array uint8 [height, width, channels], the path of a file, or its bytes.

    Raises:
        Exception: of many kinds, whatever Pillow makes of a file that is damaged.
    """
    if isinstance(image, np.ndarray):
        pixels = image if image.ndim == 3 else image[..., None]
        right = not channels or pixels.shape[2] == channels
        if right and (not size or pixels.shape[:2] == (size, size)):
            return pixels
        opened = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    else:
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    with opened:
        picture = ImageOps.exif_transpose(opened)
        grey = picture.mode in ("1", "L", "I;16", "I", "F", "LA", "La")
        picture = picture.convert(MODES[channels or (1 if grey else 3)])
        if size:
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _decoded(source: Source, size: int, channels: int, skip: bool) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each picture, and its pixels, in order."""

    def one(index: int) -> np.ndarray | Exception:
        try:
            return decode(source[index]["image"], size=size, channels=channels)
        except UserError:
            raise
        except Exception as error:  # Pillow has no kind of its own for what it cannot read
            return error

    numbers = iter(range(len(source)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(itertools.islice(numbers, _TOGETHER)):
            for index, result in zip(chunk, pool.map(one, chunk), strict=True):
                if isinstance(result, np.ndarray):
                    yield index, result
                elif not skip:
                    value = f"cannot be decoded ({str(result)[:100] or type(result).__name__})"
                    mend = "Mend or remove it, or leave such pictures out: --config.data.on_error=skip"
                    raise UserError(source.where(index), value, mend) from result


def _differing(source: Source, index: int, shape: tuple, first: int, expected: tuple) -> UserError:
    def told(shape: tuple) -> str:
        return f"{shape[0]} × {shape[1]} with {shape[2]} channel{'s' * (shape[2] != 1)}"

    value = f"is {told(shape)}, but {source.where(first)} is {told(expected)}"
    if shape[:2] == expected[:2]:
        return UserError(source.where(index), value, "Bring all to colours: --config.data.channels=3 (or 1 for grey).")
    return UserError(source.where(index), value, "Bring all to one size: --config.data.image_size=N")
