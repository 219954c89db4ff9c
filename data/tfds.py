"""The source `tfds:NAME[/CONFIG][@SPLIT]`: data sets prepared by TensorFlow Datasets, read without TensorFlow.

`as_data_source` reads ArrayRecord files with random access. Downloading, and the TFRecord format, need TensorFlow, which
is not installed with this project: prepare a data set once where it is.
"""

import functools
from typing import Any

from data.cache import fingerprint
from errors import UserError


def open_tfds(rest: str, text: str, document: str, field: str) -> "TfdsRecords":
    """Opens a prepared data set from `$TFDS_DATA_DIR`, by default `~/tensorflow_datasets`."""
    import tensorflow_datasets as tfds  # takes half a second, so only who asks for it waits

    name, _, split = rest.partition("@")
    try:
        builder = tfds.builder(name)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, ImportError) as error:
        raise UserError(field, f"tfds has no prepared data set {name!r} ({_first_line(error)})", _PREPARE) from error
    if not builder.info.splits:
        raise UserError(field, f"the data set {name!r} is not prepared in {builder.data_path}", _PREPARE)
    split = split or "train"
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        mend = f"The splits are: {', '.join(builder.info.splits)}."
        raise UserError(field, f"{name!r} has no split {split!r}", mend) from error
    columns = list(builder.info.features or [])
    if text not in columns:
        raise UserError("config.data.text", f"no column {text!r}", f"The columns of {name} are: {', '.join(columns)}.")
    return TfdsRecords(f"tfds:{rest}", builder, split, info, text)


class TfdsRecords:
    """The records of one split."""

    def __init__(self, name: str, builder: Any, split: str, info: Any, text: str):
        self.name = name
        self._builder, self._split, self._text = builder, split, text
        sizes = [f"{path.name}:{path.stat().st_size}" for path in map(_path, info.filepaths)]
        self.fingerprint = fingerprint(builder.info.full_name, split, info.num_examples, text, *sizes)

    @functools.cached_property
    def _records(self) -> Any:
        try:
            return self._builder.as_data_source(split=self._split)
        except (NotImplementedError, ValueError, ImportError) as error:
            raise UserError(self.name, f"cannot be read without TensorFlow ({_first_line(error)})", _PREPARE) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = {key: _plain(value) for key, value in self._records[int(index)].items()}
        return {**record, "text": record[self._text]}


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _path(path: Any) -> Any:
    from etils import epath

    return epath.Path(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


_PREPARE = "Prepare it where TensorFlow is: tfds build NAME --file_format=array_record, then set TFDS_DATA_DIR."
