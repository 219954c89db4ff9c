"""The source `tfds:NAME[/CONFIG][@SPLIT]`: data sets prepared by TensorFlow Datasets, read without TensorFlow.

`as_data_source` reads ArrayRecord and Parquet files with random access. Downloading, and the TFRecord format, need
TensorFlow, which is not installed with this project: prepare a data set once where it is.
"""

import functools
from typing import Any

import numpy as np

from data.cache import fingerprint
from errors import UserError

_PREPARE = "Prepare it where TensorFlow is (tfds build NAME --file_format=array_record) and set TFDS_DATA_DIR."


def open_tfds(rest: str, text: str, document: str, field: str) -> "TfdsTexts":
    """Opens a prepared data set from `$TFDS_DATA_DIR`, by default `~/tensorflow_datasets`.

    Raises:
        UserError: it is not there or in another format, or has no such split or column; a column that is no text is
            found when a record is read.
    """
    return _open(TfdsTexts, rest, text, "config.data.text", field)


def open_tfds_pictures(rest: str, image: str, label: str, field: str) -> "TfdsPictures":
    """The same of a data set of pictures."""
    return _open(TfdsPictures, rest, image, "config.data.image", field)


def _open(kind: Any, rest: str, column: str, column_field: str, field: str) -> Any:
    import tensorflow_datasets as tfds  # takes half a second, so only who asks for it waits

    name, _, split = rest.partition("@")
    split = split or "train"
    try:
        builder = tfds.builder(name)
        splits = builder.info.splits
    except (ValueError, AssertionError, ImportError, OSError) as error:
        value = f"tfds has no prepared data set {name!r} ({_first_line(error)})"
        raise UserError(field, value, _PREPARE) from error
    if not splits:
        raise UserError(field, f"the data set {name!r} is not prepared in {builder.data_path}", _PREPARE)
    formats = builder.info.available_file_formats()
    if formats.isdisjoint(tfds.core.FileFormat.with_random_access()):
        value = f"{name!r} is prepared as {', '.join(sorted(f.value for f in formats))}, which needs TensorFlow"
        raise UserError(field, value, _PREPARE)
    try:
        splits[split]
    except (KeyError, ValueError) as error:
        raise UserError(field, f"{name!r} has no split {split!r}", f"splits of {name}: {', '.join(splits)}") from error
    columns = list(builder.info.features or [])
    if column not in columns:
        raise UserError(column_field, f"{column!r}", f"columns of {name}: {', '.join(columns)}")
    try:
        return kind(f"tfds:{rest}", builder, split, column)
    except OSError as error:
        raise UserError(field, f"{name!r} lacks a file ({error})", _PREPARE) from error


class _TfdsRecords:
    """The records of one split, as tfds gives them."""

    def __init__(self, name: str, builder: Any, split: str, column: str):
        self.name = name
        self._builder, self._split, self._column = builder, split, column
        info = builder.info.splits[split]
        files = [f"{path.name} {path.stat().length}" for path in info.filepaths]
        self.fingerprint = fingerprint(builder.info.full_name, split, info.num_examples, column, *files)

    @functools.cached_property
    def _records(self) -> Any:
        return self._builder.as_data_source(split=self._split)

    def __len__(self) -> int:
        return len(self._records)

    def _record(self, index: int) -> dict[str, Any]:
        """Texts are `str`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {key: _decoded(value) for key, value in self._records[index].items()}

    def where(self, index: int) -> str:
        return f"{self.name}: record {index}"


class TfdsTexts(_TfdsRecords):
    """Records with a text."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._record(index)
        text = record[self._column]
        if not isinstance(text, str):
            value = f"{self._column!r} of record {index} is no UTF-8 text but {type(text).__name__}"
            raise UserError(self.name, value, "Name the column of the text with config.data.text.")
        return {**record, "text": text}


class TfdsPictures(_TfdsRecords):
    """Records with a picture."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._record(index)
        image = record[self._column]
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8:
            value = f"{self._column!r} of record {index} is no picture but {type(image).__name__}"
            raise UserError(self.name, value, "Name the column of the picture with config.data.image.")
        return {**record, "image": image}


def _decoded(value: Any) -> Any:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:  # bytes that are something else than text
        return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
