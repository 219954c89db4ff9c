"""safetensors files: headers validated before anything is read, every kind of float as float32, pickle never opened."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # how the bytes lie; NumPy has no bfloat16


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file: what the header says of it."""

    path: Path
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file

    def read(self) -> np.ndarray:
        """The tensor as float32; its dtype must be one of `FLOATS`."""
        count = int(np.prod(self.shape, dtype=np.int64))
        raw = np.fromfile(self.path, FLOATS[self.dtype], count, offset=self.offset)
        if self.dtype == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 may become infinite: the reader of weights looks for that
            return raw.astype(np.float32).reshape(self.shape)


def find_tensors(folder: Path, field: str) -> dict[str, Stored]:
    """All tensors of a folder by name, from model.safetensors or from the shards that the index names.

    Raises:
        UserError: there are no such files, one is missing, or a header and the bytes behind it do not fit together.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE, field)
    if (folder / INDEX).is_file():
        return _find_in_shards(folder, field)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        value = f"{folder} has its weights as pickle alone ({', '.join(pickles[:3])}), which can run code when opened"
        mend = "Where transformers is, load it with the class that it was saved by, and model.save_pretrained(FOLDER)."
        raise UserError(field, value, mend)
    raise UserError(field, f"{folder} has no {SINGLE}", "Name a folder that a model was saved to as safetensors.")


def read_header(path: Path, field: str) -> dict[str, Stored]:
    """The tensors of one file, which the byte ranges of its header must cover without gap or overlap.

    Raises:
        UserError: the file cannot be read or is not whole.
    """
    try:
        with safe_open(path, "numpy"):  # the library checks the header against the file's size
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise UserError(field, f"{path} ({error})", "Download or save the file again.") from error
    header.pop("__metadata__", None)
    for name, about in header.items():
        if not _is_plain(about):
            value = f"{path}: {name[:100]!r} is {str(about)[:100]}, no tensor of NumPy's"
            raise UserError(field, value, "Download or save the file again.")
    return {
        name: Stored(path, about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0])
        for name, about in header.items()
    }


def _is_plain(about: Any) -> bool:
    """Whether an entry that the library takes is written as everyone writes it, and NumPy has arrays of such a shape.

    The library also takes a list in the place of an object, an object in that of a dtype, and an empty tensor with
    sides without bounds.
    """
    if not isinstance(about, dict) or not isinstance(about["dtype"], str):
        return False
    return len(about["shape"]) <= 32 and math.prod(max(side, 1) for side in about["shape"]) < 2**59


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file as transformers does for PyTorch."""
    # The library writes a transposed or strided array's memory as it lies, which garbles it.
    whole = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(whole, path, metadata={"format": "pt"})
    path.chmod(mode)  # the library's own file is its owner's alone


def _find_in_shards(folder: Path, field: str) -> dict[str, Stored]:
    path = folder / INDEX
    try:
        shard_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({folder / Path(shard).name for shard in shard_of.values()})  # names alone: none leads elsewhere
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(field, f"{path} is no index of shards ({error})", "Download the file again.") from error
    missing = [shard.name for shard in shards if not os.path.isfile(shard)]  # also where a name is none
    if missing:
        raise UserError(field, f"{path} names {', '.join(missing[:3])}, which is not there", "Download all shards.")
    headers = {shard.name: read_header(shard, field) for shard in shards}
    tensors = {}
    for name, shard in shard_of.items():
        if name not in headers[Path(shard).name]:
            raise UserError(field, f"{path} seeks {name} in {shard}, which has none", "Download index and shards anew.")
        tensors[name] = headers[Path(shard).name][name]
    return tensors
