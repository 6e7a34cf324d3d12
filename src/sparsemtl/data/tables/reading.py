"""Tables in chunks of rows: every column as numbers, or as texts of which each different one is held once.

A `TableFile` gives frames as its format has them. `chunks` turns the frames of any file into numbers and texts,
and `looks` finds which column holds which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sparsemtl.data.tables.formats import (
    PLAIN,
    NumberFormat,
    days,
    load_pandas,
    parse_dates,
)
from sparsemtl.errors import DataError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]

CELLS = 5_000_000
"""Values that are read at a time."""
MISSING_VALUES = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")
"""Texts that stand for a missing value, where nobody says others."""
_WHOLE = re.compile(r"([+-]?\d+)([.,])0+")
"""A whole number with a fraction of zeros, as a column of numbers gets when one of them is missing."""


class Texts(NamedTuple):
    """A column of texts.

    Attributes:
        codes: every row's place in `names`, -1 where the value is missing, shape (N,).
        names: the texts, each once.
    """

    codes: Array
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that follow each other.

    Attributes:
        path: the file.
        first: place of the first of them in the file, from 0.
        numbers: column -> float64, NaN where missing, shape (N,).
        texts: column -> texts of N rows.
    """

    path: Path
    first: int
    numbers: Mapping[str, Array]
    texts: Mapping[str, Texts]

    def __len__(self) -> int:
        if self.numbers:
            return len(next(iter(self.numbers.values())))
        return len(next(iter(self.texts.values())).codes)

    def where(self, row: int | np.integer[Any]) -> str:
        """What to call a row in messages: rows count from 1, without the header."""
        return f"{self.path}, row {self.first + int(row) + 1}"


@dataclass(frozen=True)
class Dialect:
    """How a file writes a table.

    Attributes:
        separator: what stands between two values, one character.
        numbers: how numbers are written.
        dates: columns of dates -> their format as `strptime` writes it; None: the one by which all values can be read.
        text_encoding: of the characters, as Python names it; a byte order mark of the file says more.
        missing_values: texts that stand for a missing value.
        header: names of the columns, where the file does not begin with them.
        skip_rows: lines above the header.
        sheet: the sheet of an Excel file; None: the first.
    """

    separator: str = ","
    numbers: NumberFormat = PLAIN
    dates: Mapping[str, str | None] = field(default_factory=dict)
    text_encoding: str = "utf-8"
    missing_values: tuple[str, ...] = MISSING_VALUES
    header: tuple[str, ...] | None = None
    skip_rows: int = 0
    sheet: str | None = None


COMMAS = Dialect()
"""What CSV files are by default."""


class TableFile(Protocol):
    """A file that holds a table."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def dialect(self) -> Dialect:
        """Return how it is written."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""

    def with_dialect(self, dialect: Dialect) -> TableFile:
        """Give the same file, written in another way."""

    def frames(
        self, columns: Sequence[str], texts: Collection[str], numbers: Collection[str]
    ) -> Iterator[pd.DataFrame]:
        """Read rows in pieces.

        Args:
            columns: the columns that are needed.
            texts: those to be left as texts, whatever they look like.
            numbers: those that hold plain numbers.

        Raises:
            DataError: if the file is absent or damaged.
            ValueError: if a value of `numbers` is none.
        """


def chunks(file: TableFile, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
    """Read some columns of all rows.

    Raises:
        DataError: if a value of `numbers` is none, with its row and column; if the file is absent or damaged.
    """
    for name in (*numbers, *texts):
        if name not in file.columns:
            raise DataError(f"{file.path}: {unknown_name('column', name, file.columns)}")
    columns = list(dict.fromkeys([*numbers, *texts]))
    held = as_texts(file, texts)
    plain = [name for name in numbers if name not in held]
    first = 0
    try:
        for frame in file.frames(columns, held, plain):
            yield as_chunk(frame, numbers, texts, file, first=first)
            first += len(frame)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        _find_text(file, columns, numbers)
        raise DataError(f"{file.path} cannot be read: {error}.") from None


def as_chunk(
    frame: pd.DataFrame, numbers: Sequence[str], texts: Sequence[str], file: TableFile, *, first: int = 0
) -> Chunk:
    """Columns of a frame as a chunk of a file.

    Raises:
        DataError: if a value of `numbers` is none, with its row and column.
    """
    return Chunk(
        file.path,
        first,
        {name: _numbers(frame[name], file, first) for name in numbers},
        {name: _texts(frame[name], file.dialect) for name in texts},
    )


def whole_number(text: str, decimal: str = ".") -> str:
    """A text as it names a category: `1.0` is `1`, as numbers of a column in which one is missing are written.

    Args:
        text: the text.
        decimal: what stands before a number's fraction in the file; a point always does.
    """
    match = _WHOLE.fullmatch(text)
    return match[1] if match and match[2] in (".", decimal) else text


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise if two columns have one name, or a column has none."""
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"{path}: column {place} of {len(names)} has no name. Name it, or save the table without its index. If "
                "lines stand above the header, say how many by `skip_rows`."
            )
        if first.setdefault(name, place) < place:
            raise DataError(f"{path}: columns {first[name]} and {place} are both named {name!r}.")


def check_title(path: Path, rows: Sequence[Sequence[str]], skipped: int) -> None:
    """Raise if the first rows are a title rather than a header: they fill half of the columns at most.

    Args:
        path: the file.
        rows: the first rows of the file, the header or title first.
        skipped: lines that were left out above.
    """
    filled = [sum(bool(value.strip()) for value in row) for row in rows]
    if len(filled) < 3:
        return
    usual = max(set(filled[1:]), key=filled[1:].count)
    if usual >= 2 and 2 * filled[0] <= usual:
        begin = next(number for number, count in enumerate(filled) if 2 * count > usual)
        raise DataError(
            f"{path}: row {skipped + 1}, {rows[0][0][:60]!r}, fills {filled[0]} of {usual} columns and is no header. "
            f"If the header is in row {skipped + begin + 1}, set `skip_rows: {skipped + begin}`."
        )


def as_texts(file: TableFile, texts: Collection[str]) -> set[str]:
    """Return the columns that are read as texts, also to be turned into numbers here."""
    dialect = file.dialect
    return {*texts, *dialect.dates} if dialect.numbers.plain else {*file.columns}


def _numbers(column: pd.Series[Any], file: TableFile, first: int) -> Array:
    """Numbers of a column; days of dates."""
    pandas, name = load_pandas(), str(column.name)
    types = pandas.api.types
    if types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    if types.is_datetime64_any_dtype(column):
        return days(column).to_numpy(np.float64)
    codes, names = pandas.factorize(column)
    texts = pandas.Series(names).astype("str")
    form = file.dialect.dates.get(name)
    parsed = file.dialect.numbers.parse(texts) if name not in file.dialect.dates else parse_dates(texts, form or "")
    numbers: Array = np.append(parsed.to_numpy(np.float64), np.nan)[codes]
    wrong = np.isnan(numbers) & (codes >= 0)
    if wrong.any():
        row = int(wrong.argmax())
        what = "dates" if name in file.dialect.dates else "numbers"
        raise DataError(
            f"{file.path}, row {first + row + 1}: column {name!r} holds {what}, and here {names[codes[row]]!r}."
        )
    return numbers


def _texts(column: pd.Series[Any], dialect: Dialect) -> Texts:
    """Each text once; not by pandas' dtype `category`, to which 01 and 1 are the same."""
    codes, found = load_pandas().factorize(column)
    named = [whole_number(str(name).strip(), dialect.numbers.decimal) for name in found]
    names = tuple(dict.fromkeys(name for name in named if name not in dialect.missing_values))
    places = {name: place for place, name in enumerate(names)}
    return Texts(np.array([*(places.get(name, -1) for name in named), -1])[codes], names)


def _find_text(file: TableFile, columns: Sequence[str], numbers: Sequence[str]) -> None:
    """Raise for a text among numbers, which pandas refuses without saying where it stands."""
    first = 0
    for frame in file.frames(columns, columns, ()):
        for name in numbers:
            _numbers(frame[name], file, first)
        first += len(frame)
