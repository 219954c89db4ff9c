"""Sources of pictures: where they come from, named by one word, as sources of texts are.

A record is a dict with the picture under `image`: an array uint8 [height, width, channels], or, not yet decoded, the
path of a file or its bytes; and the label as it stands. Decoding, all of them to one size, is data/pixels.py's.
"""

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data import tfds
from data.cache import fingerprint
from data.sources import Record, Source, choose_kind, split_holdout
from errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def open_pictures(spec: str, *, image: str = "image", label: str = "label", field: str = "config.data.train") -> Source:
    """Opens `digits`, `npz:PATH`, `folder:DIR` or `tfds:NAME[/CONFIG][@SPLIT]`.

    Args:
        image, label: the columns, where there are columns.
        field: the name of the flag or config field, for messages.

    Raises:
        UserError: there is no such source, or it is laid out otherwise.
    """
    kind, rest = choose_kind(spec, KINDS, EMBEDDED, field)
    return KINDS[kind](rest, image, label, field)


def split_pictures(source: Source, rule: str, share: float) -> tuple[Source, Source]:
    """As `split_holdout`; by hash, pictures with the same content are on one side wherever they stand."""
    return split_holdout(source, rule, share, by=_Contents(source))


class _Contents:
    """The records of a source, each with a hash of its picture as its text."""

    def __init__(self, source: Source):
        self._source = source
        self.name, self.fingerprint = source.name, fingerprint(source.fingerprint, "contents")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        image = self._source[index]["image"]
        content = image.read_bytes() if isinstance(image, Path) else bytes(image)
        return {"text": fingerprint(content)}

    def where(self, index: int) -> str:
        return self._source.where(index)


# ---- arrays


class ArrayPictures:
    """Pictures that lie in one array, uint8 [pictures, height, width, channels], with their labels."""

    def __init__(self, name: str, place: str, images: np.ndarray, labels: np.ndarray | None, label: str):
        self.name, self._place, self._images, self._labels, self._label = name, place, images, labels, label
        told = b"" if labels is None else repr(labels.tolist()).encode()
        self.fingerprint = fingerprint(images.tobytes(), str(images.shape), told)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        record: Record = {"image": self._images[index]}
        return record if self._labels is None else {**record, self._label: self._labels[index].item()}

    def where(self, index: int) -> str:
        return f"{self._place}[{index}]"


def open_npz(rest: str, image: str, label: str, field: str) -> ArrayPictures:
    """A NumPy archive with the pictures in one array and the labels, whole numbers from 0 or texts, in another."""
    path = Path(os.path.expanduser(rest))
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise UserError(field, f"{path} holds a single array", f"Save both: np.savez(…, {image}=…, {label}=…).")
        with opened as archive:
            arrays = {name: archive[name] for name in archive.files if name in (image, label)}
            names = ", ".join(archive.files)
    except OSError as error:
        reason = error.strerror or "no NumPy archive"
        raise UserError(field, f"{path} ({reason})", "Name a .npz file that can be read.") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        value = f"{path} is no NumPy archive of plain arrays ({str(error)[:80]})"
        raise UserError(field, value, "Write it with np.savez; arrays of Python objects are not read.") from error
    if image not in arrays:
        raise UserError("config.data.image", repr(image), f"arrays of {path}: {names}")
    images, labels = arrays[image], arrays.get(label)
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        value = f"{path}: {image} is {images.dtype} {list(arrays[image].shape)}"
        raise UserError(field, value, "Give uint8 [pictures, height, width], or with channels at the end.")
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
        value = f"{path}: {image} is {list(images.shape)}, with its channels first"
        raise UserError(field, value, "Move them to the end: images.transpose(0, 2, 3, 1).")
    if labels is not None:
        _check_labels(labels, len(images), f"{path}: {label}", field)
    return ArrayPictures(f"npz:{rest}", str(path), images, labels, label)


def _check_labels(labels: np.ndarray, pictures: int, name: str, field: str) -> None:
    if labels.shape != (pictures,):
        value = f"{name} is {list(labels.shape)}, of {pictures:,} pictures"
        raise UserError(field, value, "Give one label for each picture.")
    if labels.dtype.kind not in "iuUb":
        raise UserError(field, f"{name} is {labels.dtype}", "Give whole numbers from 0, or texts.")
    if labels.dtype.kind == "i" and labels.min() < 0:
        wrong = int(np.flatnonzero(labels < 0)[0])
        raise UserError(f"{name}[{wrong}]", int(labels[wrong]), "Give labels from 0 on: no class is below.")


def open_digits(rest: str, image: str, label: str, field: str) -> ArrayPictures:
    """scikit-learn's 1,797 scans of handwritten digits, 8 × 8, which every installation has."""
    from sklearn.datasets import load_digits  # takes a second, so only who asks for it waits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return ArrayPictures("digits", "digits", pixels, digits.target, label)


# ---- a folder


class FolderPictures:
    """The picture files below a folder; the label is the name of the folder in it that they lie in."""

    def __init__(self, name: str, files: list[tuple[Path, str]], label: str):
        self.name, self._files, self._label = name, files, label

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=12)
        for path, label in self._files:
            content = hashlib.blake2b(path.read_bytes(), digest_size=24).hexdigest()
            digest.update(f"{label}/{path.name} {content}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        path, label = self._files[index]
        return {"image": path, self._label: label}

    def where(self, index: int) -> str:
        return str(self._files[index][0])


def open_folder(rest: str, image: str, label: str, field: str) -> FolderPictures:
    """One folder a class, with its pictures in it, however deep."""
    root = Path(os.path.expanduser(rest))
    if not os.path.isdir(root):
        if os.path.isfile(root):
            archive = root.suffix.lower() in ARCHIVES
            mend = "Unpack it, and name the folder." if archive else "Name the folder that holds a folder a class."
            raise UserError(field, f"{root} is {'an archive' if archive else 'a file'}, not a folder", mend)
        raise UserError(field, f"no folder {root}", "Check the path.")
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        files = [(path, folder.name) for folder in folders for path in _pictures_below(folder)]
    except OSError as error:
        raise UserError(field, f"{error.filename or root} ({error.strerror})", "Name a folder to read from.") from error
    if not folders:
        raise UserError(field, f"{root} has no folders in it", "Put the pictures of each class into a folder there.")
    filled = {name for _, name in files}
    empty = [folder for folder in folders if folder.name not in filled]
    if empty:
        mend = f"Remove the folder, or put its pictures in: {', '.join(suffix[1:] for suffix in SUFFIXES[:5])} …"
        raise UserError(field, f"{empty[0]} holds no picture", mend)
    return FolderPictures(f"folder:{rest}", files, label)


def _pictures_below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


# kind -> opener(what stands behind the colon, image column, label column, field for messages)
KINDS: dict[str, Callable[[str, str, str, str], Any]] = {
    "npz": open_npz,
    "folder": open_folder,
    "tfds": tfds.open_tfds_pictures,
    "digits": open_digits,
}
EMBEDDED = ("digits",)  # the kinds that need nothing behind a colon
