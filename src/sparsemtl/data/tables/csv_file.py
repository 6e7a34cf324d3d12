"""Tables in text files: CSV and its relatives, read by pandas, whose errors are put into words here."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import json
import lzma
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sparsemtl.data.tables import reading
from sparsemtl.data.tables.formats import load_pandas
from sparsemtl.data.tables.reading import COMMAS, Dialect, check_names, check_title
from sparsemtl.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = (",", ";", "\t", "|")
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks with which a file says its encoding; that of UTF-16 begins that of UTF-32, which comes first."""
FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or Excel file",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
}
"""First bytes of files that are no text."""
DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError)
"""What Python's archives raise where they are damaged; the last, where they are encrypted or of an unknown kind."""
FIRST_ROWS = 20
"""Rows by which a separator and a title are recognised."""
FIRST_LINES = 10 * FIRST_ROWS
"""Lines that are read for them; a quoted value may fill several."""


@dataclass(frozen=True)
class CSVFile:
    """A text file with a row a line, plain or compressed. Needs the extra `tables`.

    Attributes:
        path: the file.
        dialect: how it is written.
    """

    path: Path
    dialect: Dialect = COMMAS

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: the first line, or the dialect's.

        Raises:
            DataError: if the file is absent or empty, a title stands above the header, a name stands twice, or another
                separator divides its rows.
        """
        names = self.dialect.header or self._first_line()
        check_names(self.path, names)
        return names

    def with_dialect(self, dialect: Dialect) -> CSVFile:
        """Give the same file, written in another way."""
        return replace(self, dialect=dialect)

    def frames(
        self, columns: Sequence[str], texts: Collection[str], numbers: Collection[str]
    ) -> Iterator[pd.DataFrame]:
        """Read rows in pieces; every column is read, for only then rows that are too long are told."""
        wanted = set(columns)
        unused = [name for name in self.columns if name not in wanted]
        types = {**dict.fromkeys([*unused, *texts], "str"), **dict.fromkeys(numbers, "float64")}
        with self._explained(), self._source() as source:
            yield from load_pandas().read_csv(
                source,
                names=list(self.columns),
                header=0 if self.dialect.header is None else None,
                index_col=False,
                dtype=types,
                na_values=list(self.dialect.missing_values),
                keep_default_na=False,
                low_memory=False,  # else pieces of a chunk would be of different kinds
                chunksize=max(1, reading.CELLS // len(self.columns)),
                **self._how(),
            )

    def whole(self) -> pd.DataFrame:
        """All rows at once, every column as text."""
        frame: pd.DataFrame = load_pandas().concat(list(self.frames(self.columns, self.columns, ())))
        return frame

    def _first_line(self) -> tuple[str, ...]:
        with self._explained():
            with opened(self.path) as file, TextIOWrapper(file, self._encoding, newline="") as text:
                lines = list(islice(text, self.dialect.skip_rows, self.dialect.skip_rows + FIRST_LINES))
                first = _first_rows(lines, self.dialect.separator)
                check_separator(self.path, lines, self.dialect.separator)
                check_title(self.path, first, self.dialect.skip_rows)
            with self._source() as source:
                how = {"header": None, "nrows": 1, "dtype": "str", "keep_default_na": False, **self._how()}
                line = load_pandas().read_csv(source, **how)
            return tuple(str(name).strip() for name in line.iloc[0])
        raise AssertionError  # `_explained` raises whatever it stops

    def _how(self) -> dict[str, Any]:
        return {
            "sep": self.dialect.separator,
            "decimal": self.dialect.numbers.decimal,
            "encoding": self._encoding,
            "skipinitialspace": True,
            "skiprows": self.dialect.skip_rows,
        }

    @cached_property
    def _encoding(self) -> str:
        """The encoding that a byte order mark says, or else the dialect's."""
        with opened(self.path) as file:
            start = file.read(64)
        foreign = next((what for mark, what in FOREIGN.items() if start.startswith(mark)), None)
        if foreign is not None:
            raise DataError(f"{self.path} is {foreign}, not text. Give it the ending of its format, or save it as CSV.")
        marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        if marked is not None:
            return marked
        named = self.dialect.text_encoding
        if b"\0" in start and not named.lower().startswith(("utf-16", "utf-32", "utf16", "utf32")):
            guess = "utf-16-be" if start.startswith(b"\0") else "utf-16-le"
            raise DataError(f"{self.path} has null bytes, as no {named} text has. Try `text_encoding: {guess}`.")
        return "utf-8-sig" if start.startswith(codecs.BOM_UTF8) and named.lower() in ("utf-8", "utf8") else named

    @contextmanager
    def _source(self) -> Iterator[Any]:
        """Return what pandas reads: the path, or the one table in a ZIP archive."""
        if self.path.suffix != ".zip":
            yield self.path
            return
        with opened(self.path) as file:
            yield file

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Put what pandas raises into words."""
        errors = load_pandas().errors
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
                f"{self.dialect.separator!r} what separates its values? Set `separator`; or `skip_rows`, if lines "
                "stand above the header."
            ) from None
        except UnicodeError:
            raise DataError(_undecodable(self.path, self._encoding)) from None
        except LookupError as error:
            if "encoding" not in str(error):
                raise
            raise ParameterError(f"{error}; `text_encoding` is a name that Python knows, as utf-8.") from None
        except csv.Error as error:
            raise DataError(f"{self.path} cannot be read: {error}. Set `separator` to one character.") from None
        except DAMAGED as error:
            raise DataError(f"{self.path} cannot be read: {error}.") from None


def check_separator(path: Path, lines: Sequence[str], separator: str) -> None:
    """Raise if the first row is a single value, and another separator divides the rows into more.

    Rows of which every one has a decimal comma have two values each where commas separate.

    Raises:
        DataError: naming the other separator.
    """
    first = _first_rows(lines, separator)
    if not first or len(first[0]) > 1:
        return
    usual = {mark: _usual_length(_first_rows(lines, mark)) for mark in (separator, *SEPARATORS)}
    other = max(SEPARATORS, key=lambda mark: usual[mark])
    if usual[other] > max(1, usual[separator]):
        raise DataError(
            f"{path} has a single column, {first[0][0][:60]!r}, where {separator!r} separates. Set `separator: "
            f"{json.dumps(other)}`."
        )


def _first_rows(lines: Sequence[str], separator: str) -> list[list[str]]:
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    return list(islice((row for row in rows if row), FIRST_ROWS))


def _usual_length(rows: Sequence[Sequence[str]]) -> int:
    """Return the number of values that most rows have, 0 if there is none."""
    lengths = Counter(len(row) for row in rows)
    return max(lengths, key=lambda length: lengths[length], default=0)


def zipped_table(path: Path) -> str:
    """Name of the one file of a ZIP archive, beside what macOS and others add.

    Raises:
        DataError: if there is none, or several, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not _is_extra(name)]
    except FileNotFoundError:
        raise DataError(f"{path.absolute()} does not exist.") from None
    except DAMAGED as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    if len(names) != 1:
        raise DataError(
            f"{path} holds {', '.join(names[:5]) or 'no file'}; expected one table. Unpack it, and name the file or "
            "the files in `path`."
        )
    return names[0]


def _is_extra(name: str) -> bool:
    parts = Path(name).parts
    return parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1] in ("Thumbs.db", "desktop.ini")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for its bytes, unpacked by the ending of its name."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(zipped_table(path)) as member:
            yield member
        return
    with openers.get(path.suffix, open)(path, "rb") as file:
        yield file


def _undecodable(path: Path, text_encoding: str) -> str:
    """Say which byte of a file is not text, by reading it again."""
    decoder = codecs.getincrementaldecoder(text_encoding)()
    offset = 0
    with opened(path) as file:
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
