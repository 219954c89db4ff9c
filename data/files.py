"""Records in files: text, JSON lines, CSV and TSV, plain or .gz, one file or a glob of them.

A file is memory-mapped (a .gz is unpacked once, into the cache) and cut into byte ranges, one a record; a record is
decoded when it is asked for. So memory holds eight bytes a record, whatever the size of the files.
"""

import codecs
import csv
import functools
import glob
import gzip
import hashlib
import io
import json
import mmap
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import cached_folder, fingerprint
from errors import UserError

csv.field_size_limit(2**31 - 1)  # a document may be longer than the default of 128 KiB

BOM = b"\xef\xbb\xbf"
_HEAD = 2**16  # bytes that are read of a file when it is opened
_BLOCK = 2**22  # bytes that are checked or copied at a time


def open_files(kind: str, pattern: str, text: str, document: str, field: str) -> "FileRecords":
    """The records of all files that match a glob, in the order of their names.

    Raises:
        UserError: there is no such file, one is empty or cannot be read, or has no column `text`.
    """
    matched = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
    if not matched:
        raise UserError(field, f"no file matches {pattern}", "Check the path; put a glob in quotes.")
    opened = [_File(kind, Path(path), text, document, field) for path in matched]
    return FileRecords(f"{kind}:{pattern}", opened)


class FileRecords:
    """The records of several files, one behind the other."""

    def __init__(self, name: str, files: list["_File"]):
        self.name = name
        self.fingerprint = fingerprint(*(file.fingerprint for file in files))
        self._files = files

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(file.starts) - 1 for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._files[number].record(index - (int(self._ends[number - 1]) if number else 0))


class _File:
    """One file: its fingerprint at once, its records' byte ranges at the first use."""

    def __init__(self, kind: str, path: Path, text: str, document: str, field: str):
        self.path, self.kind, self.text, self.document = path, kind, text, document
        if path.is_dir():
            raise UserError(field, f"{path} is a folder", f"Name its files: {kind}:{path}/*")
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "blake2b").hexdigest()
        except OSError as error:
            raise UserError(field, f"{path} ({error.strerror})", "Name a file that can be read.") from error
        self.fingerprint = fingerprint(digest, kind, document if kind == "text" else text)
        self._digest = digest
        head = self._head()
        if not head.strip():
            raise UserError(str(path), "is empty", "Name a file with text in it.")
        self.columns: list[str] = []
        if kind in ("csv", "tsv"):
            self.columns = self._header(io.BytesIO(head))
            self._check_column(self.columns, f"columns of {path.name}")
        elif kind == "jsonl":
            first = next(line for line in head.splitlines() if line.strip())
            if len(head) < _HEAD:  # else the first line may be longer than what was read
                self._check_column(list(self._json(first, 1)), f"keys of {path.name}")

    # ---- byte ranges

    @functools.cached_property
    def bytes(self) -> mmap.mmap:
        plain = self.path
        if self.path.suffix == ".gz":
            plain = cached_folder("plain", self._digest[:24], self._unpack) / "plain"
        with plain.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int64 [records + 1]: record i is bytes[starts[i]:starts[i + 1]]."""
        self._check_encoding()
        ranges = {"text": self._documents, "jsonl": self._lines, "csv": self._csv_rows, "tsv": self._lines}[self.kind]
        found = np.fromiter(ranges(), np.int64)
        if len(found) < 2:
            raise UserError(str(self.path), "holds no records", "Name a file with records in it.")
        return found

    def _documents(self) -> Iterator[int]:
        if self.document == "file":
            yield from (0, len(self.bytes))
        else:
            yield from self._lines(paragraphs=self.document == "paragraph")

    def _lines(self, paragraphs: bool = False) -> Iterator[int]:
        """Where each line that is not blank starts, or each run of such lines, and the end of the last."""
        position, behind_blank, header, found = 0, True, self.kind == "tsv", False
        self.bytes.seek(0)
        while line := self.bytes.readline():
            blank = not line.removeprefix(BOM if position == 0 else b"").strip(b"\r\n" if self.kind == "tsv" else None)
            if not blank and header:
                header = False
            elif not blank and (behind_blank or not paragraphs):
                found = True
                yield position
            behind_blank = blank
            position += len(line)
        if found:
            yield position

    def _csv_rows(self) -> Iterator[int]:
        """Where each row starts: csv.reader draws lines, and what it has drawn when a row is done is where the row ends."""
        drawn = 0

        def lines() -> Iterator[str]:
            nonlocal drawn
            self.bytes.seek(0)
            while line := self.bytes.readline():
                drawn += len(line)
                yield line.decode("utf-8").removeprefix("\ufeff")

        rows = csv.reader(lines(), strict=True)
        try:
            start, last, header = 0, None, True
            for row in rows:
                if row and not header:
                    yield start
                    last = start
                header = header and not row
                start = drawn
        except csv.Error as error:
            raise UserError(f"{self.path}:{rows.line_num}", f"{error}", "Mend the quotes (RFC 4180).") from error
        if last is not None:
            yield drawn

    # ---- records

    def record(self, index: int) -> dict[str, Any]:
        start, end = int(self.starts[index]), int(self.starts[index + 1])
        raw = self.bytes[start:end]
        if self.kind == "text":
            return {"text": raw.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").strip()}
        if self.kind == "jsonl":
            values = self._json(raw, lambda: self._line(start))
            self._check_column(
                list(values), f"keys of {self.path}:{self._line(start)}" if self.text not in values else ""
            )
        else:
            fields = self._fields(raw)
            if len(fields) != len(self.columns):
                value = f"{len(fields)} fields, but the header has {len(self.columns)}"
                raise UserError(f"{self.path}:{self._line(start)}", value, "Mend the row, or its quotes.")
            values = dict(zip(self.columns, fields, strict=True))
        return {**values, "text": self._as_text(values[self.text], start)}

    def _as_text(self, value: Any, start: int) -> str:
        try:
            if isinstance(value, str):
                value.encode("utf-8")
                return value
        except UnicodeEncodeError:
            pass
        problem = "a lone surrogate" if isinstance(value, str) else f"a {type(value).__name__}, not a text"
        raise UserError(f"{self.path}:{self._line(start)}", f"{self.text!r} holds {problem}", "Mend the record.")

    def _fields(self, raw: bytes) -> list[str]:
        text = raw.decode("utf-8").removeprefix("\ufeff")
        if self.kind == "tsv":
            return text.split("\n", 1)[0].rstrip("\r").split("\t")
        return next((row for row in csv.reader(io.StringIO(text, newline="")) if row), [])

    def _json(self, raw: bytes, line: int | Callable[[], int]) -> dict[str, Any]:
        try:
            values = json.loads(raw.removeprefix(BOM))
        except ValueError as error:
            problem = f"{type(error).__name__}: {error}"
            values = None
        else:
            problem = f"a {type(values).__name__}, not an object"
        if not isinstance(values, dict):
            number = line if isinstance(line, int) else line()
            raise UserError(f"{self.path}:{number}", problem[:120], "Give one JSON object a line.")
        return values

    # ---- checks

    def _check_column(self, columns: list[str], where: str) -> None:
        if self.text not in columns:
            raise UserError("config.data.text", f"no column {self.text!r}", f"The {where} are: {', '.join(columns)}.")

    def _check_encoding(self) -> None:
        """Raises for the first byte that is not UTF-8, with its line; block by block, so that memory stays small."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        for position in range(0, len(self.bytes), _BLOCK):
            block = self.bytes[position : position + _BLOCK]
            try:
                decoder.decode(block, final=position + _BLOCK >= len(self.bytes))
            except UnicodeDecodeError as error:
                at = position + error.start - (len(error.object) - len(block))
                raise UserError(
                    f"{self.path}:{self._line(at)}", "is not UTF-8", "Convert the file to UTF-8."
                ) from error

    def _line(self, position: int) -> int:
        """The number, from 1, of the line that a byte is in."""
        return 1 + sum(self.bytes[i : min(i + _BLOCK, position)].count(b"\n") for i in range(0, position, _BLOCK))

    def _header(self, stream: io.BytesIO) -> list[str]:
        try:
            if self.kind == "tsv":
                return self._fields(stream.readline())
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline=""))
            return next(row for row in reader if row)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}:1", "is not UTF-8", "Convert the file to UTF-8.") from error

    def _head(self) -> bytes:
        try:
            with self._stream() as stream:
                return stream.read(_HEAD)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(str(self.path), f"cannot be unpacked ({error})", "Name a whole .gz file.") from error

    def _stream(self) -> Any:
        return gzip.open(self.path, "rb") if self.path.suffix == ".gz" else self.path.open("rb")

    def _unpack(self, folder: Path) -> None:
        try:
            with self._stream() as packed, (folder / "plain").open("wb") as plain:
                shutil.copyfileobj(packed, plain, _BLOCK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(str(self.path), f"cannot be unpacked ({error})", "Name a whole .gz file.") from error
