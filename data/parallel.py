"""Two files whose lines belong together, `parallel:train.zh,train.en`: the languages are what the names end with."""

import codecs
import functools
import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import fingerprint
from errors import UserError


def open_parallel(rest: str, text: str, document: str, field: str) -> "Lines":
    """The pairs of lines of two files, plain or .gz, held in memory.

    Args:
        rest: the two paths with a comma between.
        text: the language whose line is a record's text.

    Raises:
        UserError: these are not two files, or none of them has this language, or they do not have as many lines, or a
            line is empty.
    """
    paths = [Path(os.path.expanduser(path.strip())) for path in rest.split(",")]
    if len(paths) != 2 or not all(rest.split(",")):
        raise UserError(field, f"parallel:{rest}", "Give two files with a comma between: parallel:train.zh,train.en")
    names = [path.name.removesuffix(".gz").rpartition(".")[2] for path in paths]
    if names[0] == names[1]:
        value = f"{paths[0].name} and {paths[1].name} end alike"
        raise UserError(field, value, "Let the names end with their languages: train.zh and train.en")
    if text not in names:
        mend = f"Set config.data.source and config.data.target to {names[0]} and {names[1]}, by the files' names."
        raise UserError(field, f"no file of {rest} is in {text!r}", mend)
    return Lines(f"parallel:{rest}", [_File(path, field) for path in paths], names, text)


class Lines:
    """Records with a column for each language."""

    def __init__(self, name: str, files: list["_File"], languages: list[str], text: str):
        self.name = name
        self._files, self._languages, self._text = files, languages, text
        self.fingerprint = fingerprint(*(file.fingerprint for file in files), *languages, text)
        counts = [len(file) for file in files]
        if counts[0] != counts[1]:
            value = f"{files[0].path} has {counts[0]:,} lines, {files[1].path} {counts[1]:,}"
            raise UserError(name, value, "Each line of one must be the translation of the same line of the other.")

    def __len__(self) -> int:
        return len(self._files[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        lines = [file.line(index) for file in self._files]
        for file, line in zip(self._files, lines, strict=True):
            if not line:
                raise UserError(f"{file.path}:{index + 1}", "is empty", "Leave the pair out of both files.")
        record = dict(zip(self._languages, lines, strict=True))
        return {**record, "text": record[self._text]}

    def where(self, index: int) -> str:
        return f"{self._files[self._languages.index(self._text)].path}:{index + 1}"


class _File:
    """The lines of one file."""

    def __init__(self, path: Path, field: str):
        self.path = path
        try:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
        except (OSError, EOFError, zlib.error) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(field, f"{path} ({why})", "Name two text files, plain or .gz.") from error
        self._content = content.removeprefix(codecs.BOM_UTF8)
        if not self._content:
            raise UserError(str(path), "is empty", "Name a file with text in it.")
        self.fingerprint = fingerprint(self._content)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        ends = np.flatnonzero(np.frombuffer(self._content, np.uint8) == ord("\n"))
        return ends if self._content.endswith(b"\n") else np.append(ends, len(self._content))

    def __len__(self) -> int:
        return len(self._ends)

    def line(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = int(self._ends[index - 1]) + 1 if index else 0
        try:
            return self._content[begin : int(self._ends[index])].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}:{index + 1}", "is not UTF-8", "Convert the text to UTF-8.") from error
