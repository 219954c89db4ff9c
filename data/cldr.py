"""Chinese and English of the same things, from the Unicode CLDR through Babel: pairs that every installation has.

Names of countries, languages, scripts, currencies and units; and dates, times, intervals, numbers, measures and amounts
of money, drawn by chance but always the same, as both languages write them.
"""

import datetime
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import babel
from babel import Locale, dates, numbers, units

from data.cache import fingerprint
from errors import UserError

VERSION = 1  # of the drawing: raise it when the same Babel gives other pairs
COLUMNS = ("zh", "en")
LOCALES = (Locale.parse("zh_Hans_CN"), Locale.parse("en_US"))
MONEY = ("USD", "EUR", "CNY", "GBP", "JPY", "HKD", "INR", "KRW", "BRL", "CHF", "CAD", "AUD")
MEASURES = (
    ("length-kilometer", "length-meter", "length-centimeter", "length-mile", "mass-kilogram", "mass-gram", "mass-pound")
    + ("duration-year", "duration-month", "duration-week", "duration-day", "duration-hour", "duration-minute")
    + ("volume-liter", "temperature-celsius", "speed-kilometer-per-hour", "area-square-kilometer", "digital-gigabyte")
)
# How many of each are drawn; the names are as many as there are.
COUNTS = {"date": 8_000, "time": 2_000, "interval": 2_000, "number": 5_000, "measure": 3_000, "money": 6_000}

Drawn = tuple[str, str]


def open_cldr(rest: str, text: str, document: str, field: str) -> "Pairs":
    """The pairs, with the text in the column `zh` or `en`.

    Raises:
        UserError: there is no such column.
    """
    if text not in COLUMNS:
        raise UserError(field, f"{text!r}, a column that cldr lacks", f"Its columns are {', '.join(COLUMNS)}.")
    return Pairs(text)


class Pairs:
    """Records with `zh`, `en` and `kind`: what they are about."""

    name = "cldr"

    def __init__(self, text: str):
        self.text = text
        self.fingerprint = fingerprint(VERSION, babel.__version__, text)

    def __len__(self) -> int:
        return len(_pairs())

    def __getitem__(self, index: int) -> dict[str, Any]:
        kind, *texts = _pairs()[index]
        record = dict(zip(COLUMNS, texts, strict=True))
        return {"text": record[self.text], **record, "kind": kind}

    def where(self, index: int) -> str:
        return f"cldr:{index + 1}"


@functools.cache
def _pairs() -> list[tuple[str, str, str]]:
    """(kind, Chinese, English), each Chinese text once."""
    found: dict[str, tuple[str, str, str]] = {}
    for pair in _names():
        found.setdefault(pair[1], pair)
    for kind, count in COUNTS.items():
        draw = random.Random(f"{VERSION} {kind}")
        for _ in range(count):
            chinese, english = DRAWS[kind](draw)
            found.setdefault(chinese, (kind, chinese, english))
    return list(found.values())


def _names() -> Iterator[tuple[str, str, str]]:
    chinese, english = LOCALES
    for kind, attribute in (
        ("country", "territories"),
        ("language", "languages"),
        ("script", "scripts"),
        ("currency", "currencies"),
    ):
        theirs, ours = getattr(chinese, attribute), getattr(english, attribute)
        for code in sorted(theirs.keys() & ours.keys()):
            # Where Chinese has no name of its own it writes the code, or the English one: nothing to translate.
            if theirs[code] not in (code, ours[code]) and ours[code] != code:
                yield kind, theirs[code], ours[code]
    for code in sorted(MEASURES):
        names = [units.get_unit_name(code, length="long", locale=locale) for locale in LOCALES]
        if names[0] and names[1]:
            yield "unit", names[0], names[1]


def _both(write: Callable[[Locale], str]) -> Drawn:
    # Thin and unbreakable spaces are a matter of typesetting: tokenizers read them as spaces.
    chinese, english = (" ".join(write(locale).split()) for locale in LOCALES)
    return chinese, english


def _day(draw: random.Random) -> datetime.date:
    return datetime.date(1900, 1, 1) + datetime.timedelta(days=draw.randrange(73_000))


def _moment(draw: random.Random) -> datetime.time:
    return datetime.time(draw.randrange(24), draw.randrange(60), draw.randrange(60))


def _amount(draw: random.Random) -> float:
    """A number of one to seven digits before the point, and at most two behind it."""
    return round(10 ** draw.uniform(0, 7), draw.choice((0, 0, 1, 2)))


def _draw_date(draw: random.Random) -> Drawn:
    day, style = _day(draw), draw.choice(("full", "long", "short"))
    return _both(lambda locale: dates.format_date(day, style, locale=locale))


def _draw_time(draw: random.Random) -> Drawn:
    moment, skeleton = _moment(draw), draw.choice(("hm", "hms", "Hm", "Hms"))
    return _both(lambda locale: dates.format_skeleton(skeleton, moment, locale=locale))


def _draw_interval(draw: random.Random) -> Drawn:
    begin = _day(draw)
    end = begin + datetime.timedelta(days=draw.choice((3, 12, 40, 400)))
    skeleton = draw.choice(("yMMMd", "yMMMEd", "MMMd", "yMMM"))
    return _both(lambda locale: dates.format_interval(begin, end, skeleton, locale=locale))


def _draw_number(draw: random.Random) -> Drawn:
    amount = _amount(draw)
    style = draw.choice(("decimal", "percent", "compact"))
    if style == "decimal":
        return _both(lambda locale: numbers.format_decimal(amount, locale=locale))
    if style == "percent":
        return _both(lambda locale: numbers.format_percent(amount / 10_000, format="#,##0.##%", locale=locale))
    return _both(lambda locale: numbers.format_compact_decimal(amount, locale=locale, fraction_digits=1))


def _draw_measure(draw: random.Random) -> Drawn:
    amount, unit = round(10 ** draw.uniform(0, 4), draw.choice((0, 1))), draw.choice(MEASURES)
    return _both(lambda locale: units.format_unit(amount, unit, length="long", locale=locale))


def _draw_money(draw: random.Random) -> Drawn:
    amount, currency = _amount(draw), draw.choice(MONEY)
    if draw.random() < 0.5:
        return _both(lambda locale: numbers.format_currency(amount, currency, locale=locale))
    return _both(lambda locale: numbers.format_currency(amount, currency, locale=locale, format_type="name"))


DRAWS: dict[str, Callable[[random.Random], Drawn]] = {
    "date": _draw_date,
    "time": _draw_time,
    "interval": _draw_interval,
    "number": _draw_number,
    "measure": _draw_measure,
    "money": _draw_money,
}
