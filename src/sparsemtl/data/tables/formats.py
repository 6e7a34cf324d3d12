"""Numbers and dates in local forms: decimal commas, thousands, units, and the options that read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sparsemtl.errors import missing_extra

if TYPE_CHECKING:
    import pandas as pd

Decimal = Literal[".", ","]
Thousands = Literal[",", ".", " ", "'", "_"]
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d")
_SHORT = ("%d.%m.%y", "%d/%m/%y", "%m/%d/%y")
_NAMED = ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%d. %B %Y")
_TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
DATE_FORMATS = ("ISO8601", *(day + time for day in (*_DAYS, *_SHORT) for time in _TIMES), *_NAMED)
"""Formats that are tried where the format of a date column is not given, as `pandas.to_datetime` takes them."""
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
MISSING_VALUES = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")
"""Texts that stand for a missing value by default."""
_WHOLE = re.compile(r"([+-]?\d+)([.,])0+")
"""Whole number with a fraction of zeros, as columns of numbers with a missing value are written."""


@dataclass(frozen=True)
class NumberFormat:
    """Form of a file's numbers.

    Attributes:
        decimal: mark before a number's fraction.
        thousands: mark between groups of three digits; a blank stands for any kind of space. None: none.
        units: texts before or after a number that are left out, such as `$` and `%`; longer ones first.
    """

    decimal: Decimal = "."
    thousands: Thousands | None = None
    units: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Exactness of pandas' own parser for this form."""
        return self.thousands is None and not self.units

    def parse(self, texts: pd.Series[Any]) -> pd.Series[Any]:
        """Return the numbers that texts stand for, float64; NaN where a text is no number, or is missing.

        Groups that are not of three digits (two, in front of the last, as in India) are no number: `12,5` is not 125.
        A number in parentheses is negative, as accountants write it, where there are groups or units.
        """
        bare = texts.astype("str").str.replace("−", "-").str.strip()
        if not self.plain:
            bare = bare.str.replace(r"^\(\s*([^-+()]+?)\s*\)$", r"-\1", regex=True)
        for unit in self.units:
            bare = bare.str.replace(rf"^([+-]?)\s*{re.escape(unit)}\s*|\s*{re.escape(unit)}$", r"\1", regex=True)
        bare = bare.where(bare.str.fullmatch(self._pattern, na=False))
        if self.thousands is not None:
            bare = bare.str.replace(self._group, "", regex=True)
        bare = bare.str.replace(self.decimal, ".", regex=False)
        numbers: pd.Series[Any] = load_pandas().to_numeric(bare, errors="coerce").astype("float64")
        return numbers

    @cached_property
    def _group(self) -> str:
        kinds = {" ": r"\s", "'": "['’]"}
        return "" if self.thousands is None else kinds.get(self.thousands, re.escape(self.thousands))

    @cached_property
    def _pattern(self) -> str:
        point, group = re.escape(self.decimal), self._group
        grouped = rf"\d{{1,3}}(?:{group}\d{{2,3}})*{group}\d{{3}}|" if group else ""
        finite = rf"(?:(?:{grouped}\d+)(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"
        return rf"[+-]?(?:{finite}|(?i:inf(?:inity)?))"  # infinite numbers are refused as such later


_LOCAL = (
    NumberFormat(),
    NumberFormat(","),
    *(NumberFormat(".", thousands) for thousands in (",", " ", "'", "_")),
    *(NumberFormat(",", thousands) for thousands in (".", " ")),
)
"""Formats that a text column is tried for, the simplest first."""


@dataclass(frozen=True)
class Dialect:
    """Form of a file's table.

    Attributes:
        separator: character between two values; None: a tab in .tsv files, a comma in others.
        numbers: form of its numbers.
        dates: columns of dates -> their format as `strptime` writes it; None: the one that reads all values.
        text_encoding: encoding as Python names it; a byte order mark of the file goes first.
        missing_values: texts that stand for a missing value.
        header: names of the columns, where the file does not begin with them.
        skip_rows: lines above the header.
        sheet: sheet of an Excel file; None: the first.
    """

    separator: str | None = None
    numbers: NumberFormat = NumberFormat()
    dates: Mapping[str, str | None] = field(default_factory=dict)
    text_encoding: str = "utf-8"
    missing_values: tuple[str, ...] = MISSING_VALUES
    header: tuple[str, ...] | None = None
    skip_rows: int = 0
    sheet: str | None = None


def whole_number(text: str, decimal: str = ".") -> str:
    """Return a text as it names a category: `1.0` is `1`, and `1,0` where a comma stands before the fraction."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match and match[2] in (".", decimal) else text


def suggest_option(texts: Iterable[str], used: NumberFormat) -> str:
    """Return the option that reads different texts of a column, "" if they are no numbers or dates in a local form.

    A few other texts, such as a dash for a missing value, change nothing. By the format `used` they are no numbers.
    """
    known = [text.strip() for text in texts]
    dates = [text for text in known if _DATE.fullmatch(text)]
    if _nearly_all(dates, known):
        return (
            f"{_examples(dates)} look like dates. Name the column in `dates` (days since 1970-01-01 become its "
            f"number), or in `drop`{_and_missing(dates, known)}."
        )
    matches = {text: match for text in known if (match := _WITH_UNIT.fullmatch(text))}
    numbers = list(matches)
    if not _nearly_all(numbers, known) or _reads(used, used.units, numbers):
        return ""
    units = sorted({unit for match in matches.values() for unit in match.group("before", "after") if unit})
    ways = sorted(_LOCAL, key=lambda way: way.decimal != used.decimal == ",")  # a decimal comma that was named stays
    fitting = [way for way in ways if _reads(way, units, numbers)]
    options = [said for way in fitting if (said := _options_of(way, units, used))]
    if not options:
        return ""
    either = " or ".join(options[: 2 if _ambiguous(fitting) else 1])
    return f"{_examples(numbers)} look like numbers. Set {either}{_and_missing(numbers, known)}."


def _reads(way: NumberFormat, units: Sequence[str], texts: Sequence[str]) -> bool:
    by_length = tuple(sorted(units, key=len, reverse=True))
    numbers = NumberFormat(way.decimal, way.thousands, by_length).parse(load_pandas().Series(texts))
    return bool(numbers.notna().all())


def _ambiguous(fitting: Sequence[NumberFormat]) -> bool:
    """Return whether the same mark may group thousands or stand before a fraction, as in 1,250."""
    plain = {way.decimal for way in fitting if way.thousands is None}
    return len(plain) == 1 and any(way.thousands in plain for way in fitting)


def _options_of(way: NumberFormat, units: Sequence[str], used: NumberFormat) -> str:
    said = [f'`decimal: "{way.decimal}"`'] if way.decimal != used.decimal else []
    said += [f'`thousands: "{way.thousands}"`'] if way.thousands not in (None, used.thousands) else []
    quoted = ", ".join(f'"{unit}"' for unit in units)
    return " and ".join([*said, *([f"`units: [{quoted}]`"] if not {*units} <= {*used.units} else [])])


def _nearly_all(some: Sequence[str], known: Sequence[str]) -> bool:
    return len(some) >= 2 and len(known) - len(some) <= max(1, len(known) // 10)


def _examples(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:3]))


def _and_missing(some: Sequence[str], known: Sequence[str]) -> str:
    rest = [text for text in known if text not in set(some)]
    return f", and name {_examples(rest)} in `missing_values`" if rest else ""


def parse_dates(texts: pd.Series[Any], form: str) -> pd.Series[Any]:
    """Return days since 1970-01-01 UTC, with fractions for times, float64; NaN where a text is no date of this form."""
    return days(load_pandas().to_datetime(texts, format=form, errors="coerce", utc=True))


def wrong_date_format(form: str) -> str:
    """Return why pandas can read no date by a format, "" if it can."""
    try:
        parse_dates(load_pandas().Series(["2000-01-01"]), form)
    except ValueError as error:
        return str(error)
    return ""


def days(times: pd.Series[Any]) -> pd.Series[Any]:
    """Return days since 1970-01-01 UTC of a column of times, float64; NaN where missing."""
    pandas = load_pandas()
    stamps = pandas.to_datetime(times, utc=True, errors="coerce")
    since: pd.Series[Any] = (stamps - pandas.Timestamp(0, tz="UTC")) / pandas.Timedelta(days=1)
    return since.astype("float64")


def load_pandas() -> Any:
    """Import pandas.

    Raises:
        MissingExtraError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "tables", "a table") from None
    return pandas
