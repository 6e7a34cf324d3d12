"""Numbers and dates as people write them: decimal commas, thousands, units; and what a column that has them needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sparsemtl.errors import missing_extra

if TYPE_CHECKING:
    import pandas as pd

Decimal = Literal[".", ","]
Thousands = Literal[",", ".", " ", "'", "_"]
ISO = "ISO8601"
"""pandas' name of the international format of dates, in all its lengths."""
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d")
_SHORT = ("%d.%m.%y", "%d/%m/%y", "%m/%d/%y")
_NAMED = ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d. %B %Y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
DATE_FORMATS = (ISO, *(day + time for day in (*_DAYS, *_SHORT) for time in _TIMES), *_NAMED)
"""Formats that are tried where a date column's own is not given, as `strptime` writes them."""
_CURRENCIES = "USD|EUR|GBP|CHF|JPY|INR|CNY|SEK|NOK|DKK|PLN|CZK|BRL|CAD|AUD|US\\$|CA\\$|A\\$|R\\$|Rs\\.?|kr\\.?|zł"
_MEASURES = "kg|mg|g|lbs?|cm|mm|km|m|ft|in|ml|l|°C|°F|kWh|km/h|mph|ms|h|min|s"
_UNIT = rf"[$€£¥₹₽₩₺₴₪₫฿₦₱¢%‰°]|{_CURRENCIES}"
_WITH_UNIT = re.compile(
    rf"[+\-−(]?\s*(?P<before>{_UNIT})?\s*[+\-−]?[\d.,'’_\s]*\d[\d.,'’_\s]*?\s*(?P<after>{_UNIT}|{_MEASURES})?\)?"
)
_DATE = re.compile(
    r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})|\d{1,2}\.?[ -][A-Za-zÀ-ž]{3,9}\.?[ -]\d{2,4}"
    r"|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})([T ].*)?"
)
SHOWN = 3
"""Values that a message shows."""


@dataclass(frozen=True)
class NumberFormat:
    """How a file writes numbers.

    Attributes:
        decimal: what stands before a number's fraction.
        thousands: what groups digits by thousands; a blank stands for any kind of space. None: nothing.
        units: texts before or after a number that are passed over, such as `$` and `%`.
    """

    decimal: Decimal = "."
    thousands: Thousands | None = None
    units: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """True if pandas reads such numbers exactly."""
        return self.thousands is None and not self.units

    def parse(self, texts: pd.Series[Any]) -> pd.Series[Any]:
        """Numbers that texts stand for, float64; NaN where a text stands for none, or is missing.

        Groups that are not of three digits (two, in front of the last, as in India) are no number: `12,5` is not 125.
        A number in parentheses is negative, as accountants write it, where there are groups or units.
        """
        pandas = load_pandas()
        bare = texts.astype("str").str.replace("−", "-").str.strip()
        if not self.plain:
            bare = bare.str.replace(r"^\(\s*([^-+()]+?)\s*\)$", r"-\1", regex=True)
        for unit in self.units:
            bare = bare.str.replace(rf"^([+-]?)\s*{re.escape(unit)}\s*|\s*{re.escape(unit)}$", r"\1", regex=True)
        bare = bare.where(bare.str.fullmatch(self._pattern, na=False))
        if self.thousands is not None:
            bare = bare.str.replace(self._group, "", regex=True)
        numbers: pd.Series[Any] = pandas.to_numeric(bare.str.replace(self.decimal, ".", regex=False), errors="coerce")
        return numbers.astype("float64")

    @cached_property
    def _group(self) -> str:
        kinds = {" ": r"\s", "'": "['’]"}
        return "" if self.thousands is None else kinds.get(self.thousands, re.escape(self.thousands))

    @cached_property
    def _pattern(self) -> str:
        point, group = re.escape(self.decimal), self._group
        grouped = rf"\d{{1,3}}(?:{group}\d{{2,3}})*{group}\d{{3}}|" if group else ""
        return rf"[+-]?(?:(?:{grouped}\d+)(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"


PLAIN = NumberFormat()
LOCAL = (
    PLAIN,
    NumberFormat(","),
    *(NumberFormat(".", thousands) for thousands in (",", " ", "'", "_")),
    *(NumberFormat(",", thousands) for thousands in (".", " ")),
)
"""Formats that a text column is tried for, the simplest first."""


def remedy(column: str, texts: Iterable[str], used: NumberFormat) -> str:
    """Say which option reads a text column whose values are numbers or dates in a local form; "" if they are not.

    A few other texts, such as a dash for a missing value, change nothing.

    Args:
        column: its name.
        texts: its different texts.
        used: the format by which they are no numbers.
    """
    known = [text.strip() for text in texts]
    if (dates := [text for text in known if _DATE.fullmatch(text)]) and _most(dates, known):
        return (
            f"{_like(dates)} look like dates. Name the column in `dates` (days since 1970-01-01 become its number), or "
            f"in `drop`{_others(dates, known)}."
        )
    matches = {text: match for text in known if (match := _WITH_UNIT.fullmatch(text))}
    if not _most(list(matches), known):
        return ""
    units = sorted({unit for match in matches.values() for unit in match.group("before", "after") if unit})
    if _fits(used, used.units, list(matches)):
        return ""
    ways = sorted(LOCAL, key=lambda way: way.decimal != used.decimal == ",")  # a decimal comma was named: it stays
    fitting = [way for way in ways if _fits(way, units, list(matches))]
    options = [said for way in fitting if (said := _options(way, units, used))]
    if not options:
        return ""
    either = " or ".join(options[: 2 if _ambiguous(fitting) else 1])
    return f"{_like(list(matches))} look like numbers. Set {either}{_others(list(matches), known)}."


def _fits(way: NumberFormat, units: Sequence[str], texts: Sequence[str]) -> bool:
    pandas = load_pandas()
    by_length = tuple(sorted(units, key=len, reverse=True))
    numbers = NumberFormat(way.decimal, way.thousands, by_length).parse(pandas.Series(texts))
    return bool(numbers.notna().all())


def _ambiguous(fitting: Sequence[NumberFormat]) -> bool:
    """Whether the same mark may group thousands or stand before a fraction, as in 1,250; not if there is no mark."""
    plain = {way.decimal for way in fitting if way.thousands is None}
    return len(plain) == 1 and any(way.thousands in plain for way in fitting)


def _options(way: NumberFormat, units: Sequence[str], used: NumberFormat) -> str:
    said = [f'`decimal: "{way.decimal}"`'] if way.decimal != used.decimal else []
    said += [f'`thousands: "{way.thousands}"`'] if way.thousands not in (None, used.thousands) else []
    said += [f"`units: [{', '.join(map(_quoted, units))}]`"] if not {*units} <= {*used.units} else []
    return " and ".join(said)


def _quoted(text: str) -> str:
    return f'"{text}"'


def _most(some: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether nearly all texts are among some, of which there are at least two."""
    return len(some) >= 2 and len(known) - len(some) <= max(1, len(known) // 10)


def _like(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:SHOWN]))


def _others(some: Sequence[str], known: Sequence[str]) -> str:
    rest = [text for text in known if text not in set(some)]
    return f", and name {_like(rest)} in `missing_values`" if rest else ""


def date_formats(texts: pd.Series[Any], among: Iterable[str]) -> tuple[str, ...]:
    """Those of some formats by which all texts are dates."""
    return tuple(form for form in among if parse_dates(texts, form).notna().all())


def parse_dates(texts: pd.Series[Any], form: str) -> pd.Series[Any]:
    """Days since 1970-01-01 UTC, with fractions for times, float64; NaN where a text is no date of this form."""
    pandas = load_pandas()
    return days(pandas.to_datetime(texts.astype("str").str.strip(), format=form, errors="coerce", utc=True))


def wrong_date_format(form: object) -> str:
    """Return why pandas can read no date by a format, "" if it can."""
    pandas = load_pandas()
    try:
        if not isinstance(form, str):
            return "" if form is None else ", which is no text"
        pandas.to_datetime(pandas.Series(["2000-01-01"]), format=form, errors="coerce")
    except ValueError as error:
        return f": {error}"
    return ""


def days(times: pd.Series[Any]) -> pd.Series[Any]:
    """Days since 1970-01-01 UTC of a column of times, float64; NaN where missing."""
    pandas = load_pandas()
    stamps = pandas.to_datetime(times, utc=True, errors="coerce")
    since: pd.Series[Any] = (stamps - pandas.Timestamp(0, tz="UTC")) / pandas.Timedelta(days=1)
    return since.astype("float64")


def load_pandas() -> Any:
    """Import pandas.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "tables", "a table") from None
    return pandas
