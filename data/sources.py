"""Sources of records: where documents come from, named by one word, so that own data need no code.

A source has random access and a fingerprint of its content. Opening one is cheap: records are found and read when they
are first asked for, so a second run, whose tokens are cached, never reads them.
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from data import cldr, files, parallel, pydocs, tfds
from data.cache import fingerprint
from errors import UserError

Record = dict[str, Any]


class Source(Protocol):
    """Records by number. Each is a dict that has the document under `text`, and the other columns as they stand."""

    name: str  # as the user gave it
    fingerprint: str  # changes with the content

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def where(self, index: int) -> str:
        """What messages call a record: file and line, `reviews.csv:14`, if it stands in one."""
        ...


# kind -> opener(what stands behind the colon, text column, document mode, field for messages)
KINDS: dict[str, Callable[[str, str, str, str], Source]] = {
    "text": functools.partial(files.open_files, "text"),
    "jsonl": functools.partial(files.open_files, "jsonl"),
    "csv": functools.partial(files.open_files, "csv"),
    "tsv": functools.partial(files.open_files, "tsv"),
    "tfds": tfds.open_tfds,
    "parallel": parallel.open_parallel,
    "pydocs": pydocs.open_pydocs,
    "cldr": cldr.open_cldr,
}
EMBEDDED = ("pydocs", "cldr")  # the kinds that need nothing behind a colon


def open_source(
    spec: str, *, text: str = "text", document: str = "paragraph", field: str = "config.data.train"
) -> Source:
    """Opens `pydocs`, `cldr` or `KIND:REST`.

    Args:
        text: the column that holds the text, where there are columns.
        document: what a document is in a `text:` source: `paragraph`, `line` or `file`.
        field: the name of the flag or config field, for messages.
    """
    if document not in ("paragraph", "line", "file"):
        raise UserError("config.data.document", repr(document), "Choose paragraph, line or file.")
    kind, rest = choose_kind(spec, KINDS, EMBEDDED, field)
    return KINDS[kind](rest, text, document, field)


def choose_kind(spec: str, kinds: Iterable[str], embedded: Sequence[str], field: str) -> tuple[str, str]:
    """The kind that a source is named by, and what stands behind its colon.

    Args:
        kinds: those there are, the likeliest first; `embedded` are those of them that need nothing behind a colon.
    """
    known = list(kinds)
    kind, colon, rest = spec.partition(":")
    if "\0" in spec:
        raise UserError(field, repr(spec), "Give a path without the null character.")
    if kind in known and (bool(colon) == (kind not in embedded)):
        return kind, rest
    if "/" in kind or (not colon and "." in kind):
        raise UserError(field, f"{spec!r} has no kind", f"Did you mean {known[0]}:{spec}? Kinds: {', '.join(known)}.")
    near = difflib.get_close_matches(kind, known, n=1)
    hint = f"Did you mean {near[0]}{'' if near[0] in embedded else ':' + (rest or 'PATH')}? " if near else ""
    raise UserError(field, f"{spec!r} is no source", f"{hint}Kinds: {', '.join(known)}.")


def split_holdout(
    source: Source, rule: str = "hash", share: float = 0.05, by: Source | None = None
) -> tuple[Source, Source]:
    """The source as two that have no document in common: for training, and held out.

    Args:
        rule: `hash` goes by the document's words, so that equal documents are on one side wherever they stand;
            `tail` holds out the last documents, or the end of the only one.
        share: how much is held out, between 0 and 1.
        by: the same records with another column as their text, whose words decide instead. So the second texts of
            pairs fall on the sides of the first.

    Raises:
        UserError: the rule is another one; or, at the first use, there are not two different documents.
    """
    if rule not in ("hash", "tail"):
        raise UserError("config.data.holdout", repr(rule), "Choose hash or tail.")
    if rule == "tail" and len(source) == 1 and by is None:
        return _Part(source, share, held_out=False), _Part(source, share, held_out=True)
    halves = _Halves(source, rule, share, source if by is None else by)
    return _Subset(halves, held_out=False), _Subset(halves, held_out=True)


class _Halves:
    """Which records are held out; found at the first use, since it takes reading all of them."""

    def __init__(self, source: Source, rule: str, share: float, by: Source):
        self.source, self.rule, self.share, self.by = source, rule, share, by

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """A Boolean for each record."""
        count = len(self.source)
        if count < 2:
            raise UserError(self.source.name, f"{count} document", "Name held-out documents: --config.data.valid=…")
        if self.rule == "tail":
            return np.arange(count) >= min(count - 1, max(1, round(count * (1 - self.share))))
        places = np.fromiter((_place(self.by[i]["text"]) for i in range(count)), np.float64, count)
        held_out = places < self.share
        # A handful of documents may leave one side empty: then the lowest, or all but the highest, are held out.
        if not held_out.any():
            held_out = places == places.min()
        if held_out.all():
            held_out = places < places.max()
        if not held_out.any() or held_out.all():
            raise UserError(
                self.source.name, "all documents are equal", "Name held-out documents: --config.data.valid=…"
            )
        return held_out


def _place(text: str) -> float:
    """Where a document falls between 0 and 1, by its words."""
    return int(fingerprint(" ".join(text.split())), 16) / 16**24


class _Subset:
    """One side of a split."""

    def __init__(self, halves: _Halves, held_out: bool):
        self._halves, self._held_out = halves, held_out
        source = halves.source
        self.name = f"{source.name} ({'held out' if held_out else 'without the held-out documents'})"
        parts = [source.fingerprint, halves.rule, repr(halves.share), str(held_out)]
        if halves.by is not source:
            parts.append(halves.by.fingerprint)
        self.fingerprint = fingerprint(*parts)

    @functools.cached_property
    def _indices(self) -> np.ndarray:
        return np.flatnonzero(self._halves.held_out == self._held_out)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._halves.source[int(self._indices[index])]

    def where(self, index: int) -> str:
        return self._halves.source.where(int(self._indices[index]))


class _Part:
    """The beginning of the one document that a source has, or its end, by characters."""

    def __init__(self, source: Source, share: float, held_out: bool):
        self._source, self._share, self._held_out = source, share, held_out
        self.name = f"{source.name} ({'its end' if held_out else 'without its end'})"
        self.fingerprint = fingerprint(source.fingerprint, "part", repr(share), str(held_out))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        text = record["text"]
        cut = min(max(round(len(text) * (1 - self._share)), 1), len(text) - 1)
        return {**record, "text": text[cut:] if self._held_out else text[:cut]}

    def where(self, index: int) -> str:
        return self._source.where(index)


def joined(*sources: Source) -> Source:
    """The records of all of them, one source behind the other."""
    return _Joined(sources)


class _Joined:
    """Several sources, one behind the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self.name = " and ".join(dict.fromkeys(source.name for source in sources))
        self.fingerprint = fingerprint("joined", *(source.fingerprint for source in sources))

    def _find(self, index: int) -> tuple[Source, int]:
        for source in self._sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def __getitem__(self, index: int) -> Record:
        source, within = self._find(index)
        return source[within]

    def where(self, index: int) -> str:
        source, within = self._find(index)
        return source.where(within)


def sample(source: Source, count: int) -> Source:
    """So many of the records, chosen by chance but always the same; the source itself if `count` is 0."""
    return _Sample(source, count) if count else source


class _Sample:
    """Some records of a source, in its order."""

    def __init__(self, source: Source, count: int):
        self._source, self._count = source, count
        self.name = f"{source.name} ({count} of its documents)"
        self.fingerprint = fingerprint(source.fingerprint, "sample", count)

    @functools.cached_property
    def _indices(self) -> np.ndarray:
        places = np.array([_place(str(i)) for i in range(len(self._source))])
        return np.sort(np.argsort(places, kind="stable")[: self._count])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))
