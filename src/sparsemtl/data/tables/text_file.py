"""Tables in text files: CSV and its relatives, read by pandas, with errors that name the place and the option."""

from __future__ import annotations

import codecs
import csv
import json
import lzma
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemtl.data.tables.formats import Dialect, load_pandas
from sparsemtl.data.unpacking import unpacked, unzipped
from sparsemtl.errors import DataError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

FIRST_ROWS = 20
"""Rows by which a separator and a title are recognised."""
_SEPARATORS = (",", ";", "\t", "|")
_TABS = {".tsv", ".tab"}
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # the beginning of the mark of UTF-32, which comes first
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by byte order mark."""
_BYTES = {
    b"PK\x03\x04": "a ZIP archive or Excel file",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
}
"""Formats by the first bytes of files that are no text."""
_FOREIGN = (
    *(".xls", ".xlsx", ".xlsm", ".xlsb", ".parquet", ".pq", ".ods", ".numbers", ".json", ".jsonl"),
    *(".feather", ".arrow", ".orc", ".h5", ".sav", ".dta"),
)
"""Endings of files that are no text."""
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError)
"""Errors of damaged archives; the last one of archives that are encrypted or of an unknown kind."""


def read_text(path: Path, dialect: Dialect, texts: Collection[str] | None) -> pd.DataFrame:
    """Read a text file, plain or compressed, as a frame of numbers and texts.

    Args:
        path: the file.
        dialect: form of the file.
        texts: columns to read as texts, whatever they look like; None: all.

    Raises:
        DataError: if the file is absent, damaged or no table of this form; naming the option that would read it.
        ParameterError: if there is no such encoding.
    """
    pandas = load_pandas()
    inner, data = _unpack(path)
    if inner.suffix.lower() in _FOREIGN:
        raise DataError(f"{path}: {inner.name} cannot be read. Save it as CSV, .parquet or .xlsx, not in an archive.")
    separator = dialect.separator or ("\t" if _TABS & {suffix.lower() for suffix in inner.suffixes} else ",")
    encoding = _encoding(path, data[:64], dialect)
    every = texts is None or not dialect.numbers.plain
    try:
        names = dialect.header or _header(path, data, dialect, encoding, separator)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame: pd.DataFrame = pandas.read_csv(
                BytesIO(data),
                sep=separator,
                encoding=encoding,
                names=list(names),
                header=0 if dialect.header is None else None,
                index_col=False,
                dtype="str" if every else dict.fromkeys([*(texts or ()), *dialect.dates], "str"),
                na_values=list(dialect.missing_values),
                keep_default_na=False,
                low_memory=False,  # else pieces of a column would be of different kinds
                decimal=dialect.numbers.decimal,
                skipinitialspace=True,
                skiprows=dialect.skip_rows,
            )
            return frame
    except pandas.errors.EmptyDataError:
        raise DataError(f"{path} is empty.") from None
    except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
        raise DataError(
            f"{path} has rows of different lengths: {str(error).strip().rstrip('.')}. Is {separator!r} what separates "
            "its values? Set `separator`; or `skip_rows`, if lines stand above the header."
        ) from None
    except UnicodeError:
        raise DataError(_undecodable(path, data, encoding)) from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read: {error}. Set `separator` to one character.") from None


def check_header(path: Path, rows: Sequence[Sequence[str]], dialect: Dialect) -> tuple[str, ...]:
    """Return the names in the first of some rows.

    Raises:
        DataError: if it is a title, which fills half of the columns at most, or the names do not do.
    """
    filled = [sum(bool(value.strip()) for value in row) for row in rows]
    usual = max(set(filled[1:]), key=filled[1:].count) if len(filled) > 2 else 0
    if usual >= 2 and 2 * filled[0] <= usual:
        begin = next(number for number, count in enumerate(filled, start=dialect.skip_rows) if 2 * count > usual)
        raise DataError(
            f"{path}: row {dialect.skip_rows + 1}, {rows[0][0][:60]!r}, fills {filled[0]} of {usual} columns and is no "
            f"header. If the header is in row {begin + 1}, set `skip_rows: {begin}`."
        )
    names = tuple(name.strip() for name in rows[0])
    check_names(path, names)
    return names


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise if two columns have one name, or a column has none."""
    first: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"{path}: column {place} of {len(names)} has no name. Name it, or save the table without its index. If "
                "lines stand above the header, set `skip_rows` to their number."
            )
        if first.setdefault(name, place) < place:
            raise DataError(f"{path}: columns {first[name]} and {place} are both named {name!r}.")


def _unpack(path: Path) -> tuple[Path, bytes]:
    """Return the contents of a file, or of the one file in a ZIP archive beside those that macOS and others add."""
    try:
        if path.suffix.lower() != ".zip":
            return path, unpacked(path)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not _is_extra(name)]
            if len(names) == 1:
                return Path(names[0]), unzipped(path, archive, names[0])
    except (FileNotFoundError, DataError):
        raise
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    raise DataError(
        f"{path} holds {', '.join(names[:5]) or 'no file'}; expected one table. Unpack it, and name the file or the "
        "files in `path`."
    )


def _is_extra(name: str) -> bool:
    parts = Path(name).parts  # none of a damaged name
    return not parts or parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1] in ("Thumbs.db", "desktop.ini")


def _encoding(path: Path, start: bytes, dialect: Dialect) -> str:
    """Return the encoding of the byte order mark, or else the dialect's."""
    if foreign := next((kind for mark, kind in _BYTES.items() if start.startswith(mark)), None):
        raise DataError(f"{path} is {foreign}, not text. Give it the ending of its format, or save it as CSV.")
    if marked := next((name for mark, name in _MARKS.items() if start.startswith(mark)), None):
        return marked
    try:
        named = codecs.lookup(dialect.text_encoding).name
    except LookupError as error:
        raise ParameterError(f"{error}; `text_encoding` is a name that Python knows, as utf-8.") from None
    if b"\0" in start and not named.startswith(("utf-16", "utf-32")):
        guess = "utf-16-be" if start.startswith(b"\0") else "utf-16-le"
        raise DataError(f"{path} has null bytes, as no {named} text has. Try `text_encoding: {guess}`.")
    return "utf-8-sig" if start.startswith(codecs.BOM_UTF8) and named == "utf-8" else named


def _header(path: Path, data: bytes, dialect: Dialect, encoding: str, separator: str) -> tuple[str, ...]:
    """Return the names in the first row, after a check that it is a header and divided by this separator."""
    text = TextIOWrapper(BytesIO(data), encoding, newline="")
    lines = list(islice(text, dialect.skip_rows, dialect.skip_rows + 10 * FIRST_ROWS))  # values may fill several
    rows = {
        mark: list(islice(filter(None, csv.reader(lines, delimiter=mark, skipinitialspace=True)), FIRST_ROWS))
        for mark in (separator, *_SEPARATORS)
    }
    first = rows[separator]
    if not first:
        raise DataError(f"{path} is empty.")
    usual = {mark: Counter(map(len, divided)).most_common(1)[0][0] for mark, divided in rows.items()}
    other = max(_SEPARATORS, key=lambda mark: usual[mark])
    if len(first[0]) == 1 and usual[other] > max(1, usual[separator]):  # a decimal comma divides each row in two
        raise DataError(
            f"{path} has a single column, {first[0][0][:60]!r}, where {separator!r} separates. Set `separator: "
            f"{json.dumps(other)}`."
        )
    return check_header(path, first, dialect)


def _undecodable(path: Path, data: bytes, encoding: str) -> str:
    """Return a message with the byte that is no text."""
    remedy = f"is not {encoding}. Set `text_encoding` to that of the file, as latin-1 or cp1252."
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        return f"{path}, line {line}: byte {error.start}, 0x{byte:02x}, {remedy}"
    return f"{path} {remedy}"
