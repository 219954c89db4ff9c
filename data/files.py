"""Records in files: text, JSON lines, CSV and TSV, plain or .gz, one file or a glob of them.

A file is cut into byte ranges, one a record, and memory-mapped (a .gz is unpacked once, into the cache); a record is
decoded when it is asked for. So memory holds eight bytes a record, whatever the size of the files.
"""

import csv
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import cached_folder, fingerprint
from errors import UserError

VERSION = 1  # of the reading: raise it when the same bytes give other records
_BLOCK = 2**22  # bytes that are copied or searched at a time

csv.field_size_limit(2**31 - 1)  # a document may be longer than the default of 128 KiB


def open_files(kind: str, pattern: str, text: str, document: str, field: str) -> "FileRecords":
    """The records of all files that match a glob, in the order of their names.

    Args:
        kind: `text`, `jsonl`, `csv` or `tsv`.
        text: the column that holds the text; a `text` file has no columns.
        document: what a record is in a `text` file: `paragraph`, `line` or `file`.
        field: the name of the flag or config field, for messages.

    Raises:
        UserError: there is no such file, one is empty or cannot be read, or has no column `text`. What is wrong further
            on in a file is raised at the first `len` or when its record is read, with file and line.
    """
    if not pattern:
        raise UserError(field, f"{kind}: names no file", f"Give a path or a glob: {kind}:PATH")
    path = Path(os.path.expanduser(pattern))  # unlike Path.expanduser it leaves an unknown ~user as it is
    paths = [path]
    if glob.has_magic(pattern) and not os.path.isfile(path):
        paths = [found for name in sorted(glob.glob(str(path), recursive=True)) if not (found := Path(name)).is_dir()]
    if not paths:
        raise UserError(field, f"no file matches {pattern}", "Check the path; put a glob in quotes.")
    return FileRecords(f"{kind}:{pattern}", [_File(kind, path, text, document, field) for path in paths])


class FileRecords:
    """The records of several files, one behind the other."""

    def __init__(self, name: str, files: list["_File"]):
        self.name = name
        self.fingerprint = fingerprint(VERSION, *(file.fingerprint for file in files))
        self._files = files

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(file) for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, within = self._find(index)
        return file.record(within)

    def where(self, index: int) -> str:
        """`reviews.csv:14`: the file, and the line that the record starts in."""
        file, within = self._find(index)
        return file.where(within)

    def _find(self, index: int) -> tuple["_File", int]:
        """The file that a record is in, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number], index - (int(self._ends[number - 1]) if number else 0)


class _File:
    """One file: its fingerprint and columns at once, its records' byte ranges at the first use."""

    def __init__(self, kind: str, path: Path, text: str, document: str, field: str):
        self.kind, self.path, self.text, self.document = kind, path, text, document
        try:
            path.stat()  # of what is not there, or may not be seen, it says why
            if path.is_dir():
                raise UserError(field, f"{path} is a folder", f"Name its files: {kind}:{path}/*")
            if not path.is_file():  # a pipe could be read only once
                raise UserError(field, f"{path} is no ordinary file", "Save it to a file first.")
            with path.open("rb") as stream:
                self._digest = hashlib.file_digest(stream, "blake2b").hexdigest()[:24]
        except OSError as error:
            raise UserError(field, f"{path} ({error.strerror})", "Name a file that can be read.") from error
        self.fingerprint = fingerprint(self._digest, kind, document if kind == "text" else text)
        self.columns = self._read_columns()
        self._doubled = {column for column in self.columns if self.columns.count(column) > 1}

    def __len__(self) -> int:
        return len(self._starts) - 1

    def record(self, index: int) -> dict[str, Any]:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        content = _mapped(self._plain, self._digest)[start:end].decode("utf-8")
        if start == 0:
            content = content.removeprefix("\ufeff")
        if self.kind == "text":
            return {"text": content.replace("\r\n", "\n").strip()}
        if self.kind == "jsonl":
            values = self._object(content, lambda: self._line(start))
        else:
            fields = self._fields(content)
            if len(fields) != len(self.columns):
                value = f"{len(fields)} fields, but the header has {len(self.columns)}"
                mend = "Mend the row." if self.kind == "tsv" else "Mend the row, or its quotes."
                raise UserError(f"{self.path}:{self._line(start)}", value, mend)
            # Of two columns with one name, neither can be meant.
            values = {c: f for c, f in zip(self.columns, fields, strict=True) if c not in self._doubled}
        if self.text not in values:
            raise self._no_column(list(values), f"line {self._line(start)} of {self.path}")
        text = values[self.text]
        if not isinstance(text, str):
            value = f"{self.text!r} holds a {type(text).__name__}, not a text"
            raise UserError(f"{self.path}:{self._line(start)}", value, "Mend the record.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # only JSON's escapes can write it
            value = f"{self.text!r} holds a lone surrogate, half a character"
            raise UserError(f"{self.path}:{self._line(start)}", value, "Mend the \\u escapes of the record.") from error
        return {**values, "text": text}

    def where(self, index: int) -> str:
        return f"{self.path}:{self._line(int(self._starts[index]))}"

    # ---- byte ranges

    @functools.cached_property
    def _plain(self) -> Path:
        if self.path.suffix != ".gz":
            return self.path
        return cached_folder("plain", self._digest, self._unpack) / "plain"

    def _unpack(self, folder: Path) -> None:
        with self._open() as packed, (folder / "plain").open("wb") as plain:
            try:
                shutil.copyfileobj(packed, plain, _BLOCK)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise self._broken(error) from error

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """int64 [records + 1]: record i is bytes starts[i] to starts[i + 1]."""
        with self._plain.open("rb") as stream:
            find = self._row_starts if self.kind == "csv" else self._line_starts
            starts = np.fromiter(find(self._lines(stream)), np.int64)
            size = stream.tell()
        starts = starts[1:] if self.columns else starts  # the first is the header
        if not len(starts):
            raise UserError(str(self.path), "holds no records", "Name a file with records in it.")
        return np.append(starts, size)

    def _lines(self, stream: Any) -> Iterator[tuple[int, int, str]]:
        """(first byte, byte behind it, text) of each line; raises for one that is not UTF-8."""
        end = 0
        for number, line in enumerate(stream, 1):
            start, end = end, end + len(line)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{self.path}:{number}", "is not UTF-8", "Convert the file to UTF-8.") from error
            yield start, end, text.removeprefix("\ufeff") if number == 1 else text

    def _line_starts(self, lines: Iterator[tuple[int, int, str]]) -> Iterator[int]:
        """Where each line that is not blank starts; of a paragraph, or of a whole file, only the first such line."""
        begins = True
        for start, _, line in lines:
            blank = self._is_blank(line)
            if begins and not blank:
                yield start
            if self.kind == "text" and self.document == "paragraph":
                begins = blank
            elif self.kind == "text" and self.document == "file":
                begins = begins and blank

    def _row_starts(self, lines: Iterator[tuple[int, int, str]]) -> Iterator[int]:
        """Where each row starts: csv.reader draws lines one by one, so a row ends where what it has drawn ends."""
        start = drawn = 0

        def draw() -> Iterator[str]:
            nonlocal drawn
            for _, drawn, line in lines:  # noqa: B007
                yield line

        try:
            for row in csv.reader(draw(), strict=True):
                if row:
                    yield start
                start = drawn
        except csv.Error as error:
            mend = "Mend the quotes of the row that starts there (RFC 4180)."
            raise UserError(f"{self.path}:{self._line(start)}", error, mend) from error

    def _is_blank(self, line: str) -> bool:
        # In a table, spaces or tabs alone are a row, of empty fields.
        return not line.strip("\r\n" if self.kind in ("csv", "tsv") else None)

    # ---- the parts of a record

    def _fields(self, content: str) -> list[str]:
        if self.kind == "tsv":
            return content.split("\n", 1)[0].removesuffix("\r").split("\t")
        return next(row for row in csv.reader(io.StringIO(content, newline="\n")) if row)

    def _object(self, content: str, line: Callable[[], int]) -> dict[str, Any]:
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            value = str(error).split(": line ")[0]  # the line within the record would mislead
            raise UserError(f"{self.path}:{line()}", f"is no JSON ({value})", "Give one JSON object a line.") from error
        if not isinstance(values, dict):
            value = f"a {type(values).__name__}, not an object"
            raise UserError(f"{self.path}:{line()}", value, "Give one JSON object a line.")
        return values

    def _read_columns(self) -> list[str]:
        """The header of a csv or tsv file, else nothing; reads no more than the first row."""
        try:
            with self._open() as stream:
                lines = (line for _, _, line in self._lines(stream))
                filled = ((n, line) for n, line in enumerate(lines, 1) if not self._is_blank(line))
                number, first = next(filled, (0, ""))
                if not first:
                    raise UserError(str(self.path), "is empty", "Name a file with text in it.")
                if self.kind == "text":
                    return []
                if self.kind == "jsonl":
                    columns = list(self._object(first, lambda: number))
                elif self.kind == "tsv":
                    columns = self._fields(first)
                else:
                    columns = next(csv.reader(itertools.chain([first], lines), strict=True))
        except csv.Error as error:
            raise UserError(f"{self.path}:{number}", error, "Mend the quotes of the header (RFC 4180).") from error
        except (OSError, EOFError, zlib.error) as error:
            raise self._broken(error) from error
        if self.text not in columns:
            raise self._no_column(columns, str(self.path))
        if columns.count(self.text) > 1:
            mend = "Name one of the two otherwise."
            raise UserError(f"{self.path}:{number}", f"has two columns {self.text!r}", mend)
        return [] if self.kind == "jsonl" else columns

    def _open(self) -> Any:
        return gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb")

    # ---- messages

    def _line(self, position: int) -> int:
        """The number, from 1, of the line that a byte is in."""
        with self._plain.open("rb") as stream:
            blocks = (stream.read(min(_BLOCK, position - i)) for i in range(0, position, _BLOCK))
            return 1 + sum(block.count(b"\n") for block in blocks)

    def _no_column(self, columns: list[str], where: str) -> UserError:
        return UserError("config.data.text", f"{self.text!r}", f"columns of {where}: {', '.join(columns)}")

    def _broken(self, error: Exception) -> UserError:
        return UserError(str(self.path), f"cannot be unpacked ({error})", "Name a whole .gz file.")


@functools.lru_cache(maxsize=128)
def _mapped(path: Path, digest: str) -> mmap.mmap:
    """A file in memory; few at a time, since each takes a file descriptor and a glob may match many thousands."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
