"""Tables in text files: CSV and its relatives, read by pandas, whose errors are put into words here."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemtl.data.tables.reading import CELLS, Chunk, Looks, Seen, Spot, Texts, check_names
from sparsemtl.errors import DataError, ParameterError, missing_extra, unknown_name

if TYPE_CHECKING:
    import pandas as pd

MISSING_VALUES = ("", "NA", "N/A", "NaN", "nan", "null")
"""Texts that stand for a missing value, where nobody says others."""
SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Dialect:
    """How a text file writes a table.

    Attributes:
        separator: what stands between two values, one character.
        decimal: what stands before a number's fraction.
        text_encoding: of the characters, as Python names it.
        missing_values: texts that stand for a missing value.
        header: names of the columns, where the file does not begin with them.
    """

    separator: str = ","
    decimal: str = "."
    text_encoding: str = "utf-8"
    missing_values: tuple[str, ...] = MISSING_VALUES
    header: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CSVFile:
    """A text file with a row a line, plain or compressed. Needs the extra `tables`.

    Attributes:
        path: the file.
        dialect: how it is written.
    """

    path: Path
    dialect: Dialect = Dialect()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: the first line, or the dialect's.

        Raises:
            DataError: if the file is absent or empty, a name stands twice, or there is one column but more separators.
        """
        names = self.dialect.header or self._first_line()
        check_names(self.path, names)
        other = next((mark for mark in SEPARATORS if len(names) == 1 and mark in names[0]), None)
        if other is not None:
            raise DataError(
                f"{self.path} has a single column, {names[0][:60]!r}, where {self.dialect.separator!r} separates. "
                f"Set `separator: {other!r}`."
            )
        return names

    def look(self, texts: Collection[str]) -> Looks:
        """Read all rows once, to see what there is."""
        seen = {name: Seen() for name in self.columns}
        rows = 0
        for frame in self._frames({name: "str" for name in self.columns if name in texts}):
            for name in self.columns:
                _look_at(frame[name], rows, seen[name])
            rows += len(frame)
        return Looks(rows, seen)

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        """Read these columns of all rows."""
        for name in (*numbers, *texts):
            if name not in self.columns:
                raise DataError(f"{self.path}: {unknown_name('column', name, self.columns)}")
        first = 0
        try:
            for frame in self._frames({**dict.fromkeys(texts, "str"), **dict.fromkeys(numbers, "float64")}):
                yield as_chunk(frame, numbers, texts, path=self.path, first=first)
                first += len(frame)
        except ValueError as error:
            self._check_numbers(numbers, texts)
            raise DataError(f"{self.path} cannot be read: {error}.") from None

    def whole(self) -> pd.DataFrame:
        """All rows at once, every column as text."""
        frame: pd.DataFrame = _pandas().concat(list(self._frames(dict.fromkeys(self.columns, "str"))))
        return frame

    def _check_numbers(self, numbers: Sequence[str], texts: Sequence[str]) -> None:
        """Raise for a text among numbers, which pandas refuses without saying where it stands."""
        seen = self.look(texts).seen
        for name in numbers:
            if (spot := seen[name].text) is not None:
                raise DataError(
                    f"{self.path}, row {spot.row + 1}: column {name!r} holds numbers, and here {spot.value!r}."
                )

    def _first_line(self) -> tuple[str, ...]:
        with self._explained():
            line = _pandas().read_csv(self.path, header=None, nrows=1, dtype=str, keep_default_na=False, **self._how())
            return tuple(str(name) for name in line.iloc[0])
        raise AssertionError  # `_explained` raises whatever it stops

    def _frames(self, dtypes: Mapping[str, str]) -> Iterator[pd.DataFrame]:
        """Frames of rows; every column is read, for only then rows that are too long are told."""
        with self._explained():
            yield from _pandas().read_csv(
                self.path,
                names=list(self.columns),
                header=0 if self.dialect.header is None else None,
                index_col=False,
                dtype=dict(dtypes),
                na_values=list(self.dialect.missing_values),
                keep_default_na=False,
                low_memory=False,  # else pieces of a chunk would be of different kinds
                chunksize=max(1, CELLS // len(self.columns)),
                **self._how(),
            )

    def _how(self) -> dict[str, Any]:
        return {
            "sep": self.dialect.separator,
            "decimal": self.dialect.decimal,
            "encoding": self.dialect.text_encoding,
            "skipinitialspace": True,
        }

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Put what pandas raises into words."""
        errors = _pandas().errors
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", errors.ParserWarning)
                yield
        except FileNotFoundError:
            raise DataError(f"{self.path.absolute()} does not exist.") from None
        except errors.EmptyDataError:
            raise DataError(f"{self.path} is empty.") from None
        except (errors.ParserError, errors.ParserWarning) as error:
            raise DataError(
                f"{self.path} has rows of different lengths: {str(error).strip().rstrip('.')}. Is "
                f"{self.dialect.separator!r} what separates its values? Set `separator`."
            ) from None
        except UnicodeError:
            raise DataError(_undecodable(self.path, self.dialect.text_encoding)) from None
        except LookupError as error:
            if "encoding" not in str(error):
                raise
            raise ParameterError(f"{error}; `text_encoding` is a name that Python knows, as utf-8.") from None
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{self.path} cannot be read: {error}.") from None


def as_chunk(frame: pd.DataFrame, numbers: Sequence[str], texts: Sequence[str], *, path: Path, first: int = 0) -> Chunk:
    """Columns of a frame as a chunk."""
    return Chunk(
        path,
        first,
        {name: frame[name].to_numpy(np.float64) for name in numbers},
        {name: _texts(frame[name]) for name in texts},
    )


def _texts(column: pd.Series[Any]) -> Texts:
    """Each text once; not by pandas' dtype `category`, to which 01 and 1 are the same."""
    codes, names = _pandas().factorize(column)
    return Texts(np.asarray(codes), tuple(map(str, names)))


def _look_at(column: pd.Series[Any], first: int, seen: Seen) -> None:
    """Note the first number and the first text of a column that pandas has given a type."""
    pandas = _pandas()
    if pandas.api.types.is_bool_dtype(column) or not pandas.api.types.is_numeric_dtype(column):
        texts = pandas.Series(column.unique()).dropna()
        is_number = pandas.to_numeric(texts.astype(str), errors="coerce").notna()
        if is_number.any():
            seen.number = seen.number or _spot(column, column.isin(texts[is_number]), first)
        if not is_number.all():
            seen.text = seen.text or _spot(column, column.isin(texts[~is_number]), first)
    elif seen.number is None and column.notna().any():
        seen.number = _spot(column, column.notna(), first)


def _spot(column: pd.Series[Any], there: pd.Series[bool], first: int) -> Spot:
    row = int(np.argmax(there.to_numpy()))
    return Spot(first + row, str(column.iloc[row]))


def _undecodable(path: Path, text_encoding: str) -> str:
    """Say which byte of a file is not text, by reading it again."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    decoder = codecs.getincrementaldecoder(text_encoding)()
    offset = 0
    with openers.get(path.suffix, open)(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                decoder.decode(line)
            except UnicodeDecodeError as error:
                return (
                    f"{path}, line {number}: byte {offset + error.start}, 0x{error.object[error.start]:02x}, is not "
                    f"{text_encoding}. Set `text_encoding` to that of the file, as latin-1 or cp1252."
                )
            offset += len(line)
    return f"{path} is not {text_encoding}. Set `text_encoding` to that of the file, as latin-1 or cp1252."


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "tables", "a table") from None
    return pandas
