"""What columns hold, found by a first reading of all rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparsemtl.data.tables.formats import DATE_FORMATS, date_formats, load_pandas, parse_dates
from sparsemtl.data.tables.reading import Dialect, TableFile, as_texts, whole_number
from sparsemtl.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

MOST_SEEN = 100_000
"""Different texts of a column that a first reading holds."""
INFINITE = ("inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")
"""Texts that pandas reads as numbers, which are refused as such."""


class Spot(NamedTuple):
    """A value and where it stands.

    Attributes:
        row: from 0.
        value: as text.
    """

    row: int
    value: str


@dataclass
class Seen:
    """Values of a column.

    Attributes:
        number: its first number.
        text: its first value that is no number.
        time: its first time, where the file itself says that there are such.
        known: number of its values that are texts, or all if the column holds texts.
        texts: the different ones of these, at most `MOST_SEEN`.
        formats: formats of dates by which all of them can be read; None if nobody wants dates.
    """

    number: Spot | None = None
    text: Spot | None = None
    time: Spot | None = None
    known: int = 0
    texts: dict[str, None] = field(default_factory=dict)
    formats: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Looks:
    """What a first reading finds.

    Attributes:
        rows: number of rows.
        seen: column -> its values.
    """

    rows: int
    seen: Mapping[str, Seen]


def look(file: TableFile, texts: Collection[str]) -> Looks:
    """Read all rows once, to see what there is.

    Args:
        file: the file.
        texts: columns that hold texts, whatever they look like.

    Raises:
        DataError: if there is no row, or a date that is none; if the file is absent or damaged.
    """
    seen = {name: Seen(formats=_formats(file.dialect, name)) for name in file.columns}
    rows = 0
    for frame in file.frames(file.columns, as_texts(file, texts), ()):
        for name in frame.columns:
            _look_at(frame[name], rows, seen[name], file, known_text=name in texts)
        rows += len(frame)
    if rows == 0:
        raise DataError(f"{file.path} has no rows.")
    return Looks(rows, seen)


def _formats(dialect: Dialect, name: str) -> tuple[str, ...] | None:
    if name not in dialect.dates:
        return None
    form = dialect.dates[name]
    return DATE_FORMATS if form is None else (form,)


def _look_at(column: pd.Series[Any], first: int, seen: Seen, file: TableFile, *, known_text: bool) -> None:
    """Note what a piece of a column holds."""
    pandas, types = load_pandas(), load_pandas().api.types
    if types.is_datetime64_any_dtype(column):
        seen.time = seen.time or _spot(column, column.notna(), first)
        return
    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column) and not known_text:
        seen.number = seen.number or _spot(column, column.notna(), first)
        return
    found = pandas.Series(column.unique()).dropna()
    names = found.astype("str")
    if seen.formats is not None:
        _narrow(column, names, first, seen, file)
        return
    is_number = file.dialect.numbers.parse(names).notna() | names.str.strip().str.lower().isin(INFINITE)
    if known_text or types.is_bool_dtype(column):
        is_number &= False
    if is_number.any():
        seen.number = seen.number or _spot(column, column.isin(found[is_number]), first)
    if not is_number.all():
        is_text = column.isin(found[~is_number])
        seen.text = seen.text or _spot(column, is_text, first)
        seen.known += int(is_text.sum())
        for name in names[~is_number]:
            if len(seen.texts) < MOST_SEEN:
                seen.texts.setdefault(whole_number(name.strip(), file.dialect.numbers.decimal))


def _narrow(column: pd.Series[Any], names: pd.Series[Any], first: int, seen: Seen, file: TableFile) -> None:
    """Keep the formats by which all dates of one more piece can be read."""
    assert seen.formats is not None
    fitting = date_formats(names, seen.formats)
    if not fitting:
        best = max(seen.formats, key=lambda form: int(parse_dates(names, form).notna().sum()))
        spot = _spot(column, column.isin(names[parse_dates(names, best).isna()]), first)
        where = f"{file.path}, row {spot.row + 1 if spot else first + 1}"
        raise DataError(
            f"{where}: column {column.name!r} holds dates, and here {spot.value if spot else ''!r}. If that stands for "
            f"a missing value, add it to `missing_values`; else give the format, as in `dates: {{{column.name}: "
            '"%d.%m.%Y"}`.'
        )
    seen.formats = fitting
    seen.time = seen.time or _spot(column, column.notna(), first)


def date_format(file_columns: Sequence[tuple[Path, Seen]], name: str) -> str | None:
    """The one format of a column of dates in all files; None where the files themselves know times.

    Raises:
        ParameterError: if there are several, such as day and month in either order.
    """
    common = [seen.formats for _, seen in file_columns if seen.formats is not None]
    left = [form for form in common[0] if all(form in formats for formats in common)] if common else []
    if not left or len(left) == len(DATE_FORMATS):
        return None
    if len(left) > 1:
        raise ParameterError(
            f"dates: {file_columns[0][0]}: all values of column {name!r} can be read as {' and as '.join(left[:3])}. "
            f'Say which it is, as in `dates: {{{name}: "{left[0]}"}}`.'
        )
    return left[0]


def _spot(column: pd.Series[Any], there: pd.Series[bool], first: int) -> Spot | None:
    if not there.any():
        return None
    row = int(np.argmax(there.to_numpy()))
    return Spot(first + row, str(column.iloc[row]))
