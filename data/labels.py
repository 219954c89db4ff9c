"""Labels of records: read from their column, brought into an order, and made into targets.

A label is a text: what stands in the column, without white space around it. Numbers, true and false of JSON are the
text that JSON writes for them: `1`, `1.5`, `true`.
"""

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data.sources import Source
from errors import UserError

FIELD = "config.data.label"
LARGEST = float(np.finfo(np.float32).max)


def read_labels(source: Source, column: str, separator: str = "") -> list[tuple[str, ...]]:
    """The labels of each record, from one pass over the source.

    Args:
        separator: empty where each record has exactly one label. Else a record has any number of them: a JSON list, or
            a text with this between two labels.

    Raises:
        UserError: there is no such column, or what stands there is no label.
    """
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # what many records have is held once
    found = []
    for index, value in _values(source, column):
        parts = _parts(value, separator) if separator else [value]
        try:
            labels = tuple(dict.fromkeys(_text(part) for part in parts))
        except ValueError as error:
            mend = "Give a list of labels, [] for none." if separator else "Give every record one label."
            raise UserError(source.where(index), f"{column!r} {error}", mend) from error
        found.append(shared.setdefault(labels, labels))
    return found


def read_numbers(source: Source, column: str) -> np.ndarray:
    """The number of each record, float32 [examples], from one pass over the source.

    Raises:
        UserError: there is no such column, or what stands there is no number, or not a finite one in float32.
    """
    numbers = np.empty(len(source), np.float32)
    for index, value in _values(source, column):
        try:
            numbers[index] = _number(value)
        except ValueError as error:
            raise UserError(source.where(index), f"{column!r} {error}", "Give every record a number.") from error
    return numbers


def label_order(found: Sequence[tuple[str, ...]], given: Sequence[str] = (), count: int = 0) -> tuple[str, ...]:
    """All labels of the training examples in their order: as numbers if all are numbers, else by code points.

    Args:
        found: as `read_labels` gives them.
        given: the order that the user wants, `config.data.labels`; empty for none.
        count: how many the user expects, `config.model.num_labels`; 0 for any number.

    Raises:
        UserError: the labels are not those of `given`, or not `count`, or all examples have the same.
    """
    kinds = set(found)
    known = set(itertools.chain.from_iterable(kinds))
    order = tuple(given) or _sorted(known)
    if given:
        _check_given(given, known)
    if count and count != len(order):
        value = f"{count}, but the training examples have {len(order)} labels"
        value += ": an empty class" if count > len(order) else f": {_quoted(order[count])} is out of range"
        raise UserError("config.model.num_labels", value, f"Give {len(order)}, or 0 for as many as there are.")
    if len(kinds) < 2:
        same = ", ".join(_quoted(label) for label in order) or "no label"
        raise UserError(FIELD, f"all training examples have the same: {same}", "Name a column that tells them apart.")
    return order


def one_of(found: Sequence[tuple[str, ...]], labels: Sequence[str], source: Source) -> np.ndarray:
    """The number of each example's one label, int32 [examples].

    Args:
        found: what `read_labels` gave for `source`.
        labels: all labels in their order.

    Raises:
        UserError: an example has a label that is not among them.
    """
    numbers = _numbers_of(found, labels, source)
    return np.fromiter((numbers[label] for (label,) in found), np.int32, len(found))


def any_of(found: Sequence[tuple[str, ...]], labels: Sequence[str], source: Source) -> np.ndarray:
    """1 for each label that an example has, else 0: float32 [examples, labels]. Arguments and errors as of `one_of`."""
    numbers = _numbers_of(found, labels, source)
    targets = np.zeros((len(found), len(labels)), np.float32)
    rows = np.repeat(np.arange(len(found)), [len(of_example) for of_example in found])
    targets[rows, [numbers[label] for of_example in found for label in of_example]] = 1
    return targets


def _numbers_of(found: Sequence[tuple[str, ...]], labels: Sequence[str], source: Source) -> dict[str, int]:
    """The place of each label in `labels`."""
    numbers = {label: number for number, label in enumerate(labels)}
    for index, of_example in enumerate(found):
        for label in of_example:
            if label not in numbers:
                value = f"label {_quoted(label)}, which no training example has"
                raise UserError(source.where(index), value, _known(label, labels))
    return numbers


def _check_given(given: Sequence[str], known: set[str]) -> None:
    field = "config.data.labels"
    if len(set(given)) < len(given):
        raise UserError(field, f"{', '.join(map(_quoted, given))}: one of them twice", "Name each label once.")
    for label in given:
        if label not in known:
            value = f"{_quoted(label)} is an empty class: no training example has it"
            raise UserError(field, value, f"Leave it out. {_known(label, _sorted(known))}")
    for label in _sorted(known.difference(given)):
        value = f"{_quoted(label)} is not among them, but training examples have it"
        raise UserError(field, value, f"Add it, or mend the data. {_known(label, given)}")


# ---- values


def _values(source: Source, column: str) -> Iterator[tuple[int, Any]]:
    """The number of each record, and what stands in its column."""
    if column == "text":  # of every record that is the text, whatever its column is called in the file
        raise UserError(FIELD, "'text' is the text itself", "Give the labels a column with another name.")
    for index in range(len(source)):
        record = source[index]
        if column in record:
            value = record[column]
            yield index, value.tolist() if isinstance(value, np.ndarray | np.generic) else value  # from tfds
        elif index == 0:
            others = ", ".join(name for name in record if name != "text") or "none"
            raise UserError(FIELD, repr(column), f"columns of {source.name} beside the text: {others}")
        else:
            raise UserError(source.where(index), f"has no {column!r}", "Give every record one.")


def _parts(value: Any, separator: str) -> list[Any]:
    """The several labels in one cell."""
    if isinstance(value, str):
        return [part for part in value.split(separator) if part.strip()]
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    """A label as a text; ValueError says what else it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"is {json.dumps(value)}")
    if not isinstance(value, str | bool | int | float):
        raise ValueError(f"holds a {type(value).__name__}, not a label")
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    if not text:
        raise ValueError("is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # only JSON's escapes can write it
        raise ValueError("holds a lone surrogate, half a character") from error
    return text


def _number(value: Any) -> float:
    """A finite number; ValueError says what else it is."""
    text = _text(value)
    number = _parsed(text)
    if not abs(number) <= LARGEST:
        raise ValueError(f"is {_quoted(text)}, no finite number")
    return number


def _parsed(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    numbers = {label: _parsed(label) for label in labels}
    if all(math.isfinite(number) for number in numbers.values()):
        return tuple(sorted(numbers, key=lambda label: (numbers[label], label)))
    return tuple(sorted(numbers))


# ---- messages


def _known(label: str, labels: Sequence[str]) -> str:
    """The nearest of the labels, and all of them or the first few."""
    near = difflib.get_close_matches(label, labels, n=1)
    hint = f"Did you mean {_quoted(near[0])}? " if near else ""
    listed = ", ".join(_quoted(label) for label in labels[:8]) + (f", … ({len(labels)})" if len(labels) > 8 else "")
    return f"{hint}Known labels: {listed or 'none'}."


def _quoted(label: str) -> str:
    """For a message, which a whole text in place of a label would flood."""
    return repr(label if len(label) <= 40 else f"{label[:39]}…")
