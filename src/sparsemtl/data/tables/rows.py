"""Files of a table: where they are, their forms, and their rows one below the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from sparsemtl.data.options import ROOT_VARIABLE, resolve_root
from sparsemtl.data.tables.formats import Dialect, load_pandas
from sparsemtl.data.tables.text_file import FIRST_ROWS, check_header, check_names, read_text
from sparsemtl.data.unpacking import check_zip
from sparsemtl.errors import DataError, ParameterError, missing_extra, unknown_name

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]

ROLES = ("train", "validation", "test")
"""Names of a folder's files, and values of a split column."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one or several files, one below the other.

    Attributes:
        frame: the rows.
        files: files and their numbers of rows.
    """

    frame: pd.DataFrame
    files: tuple[tuple[Path, int], ...]

    @property
    def path(self) -> Path:
        """Path of the first file."""
        return self.files[0][0]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in self.frame]

    def where(self, rows: Array) -> str:
        """Return the place of the first row that is True, for messages; rows count from 1, without the header."""
        row = int(rows.argmax())
        for path, count in self.files:
            if row < count:
                return f"{path}, row {row + 1}"
            row -= count
        raise IndexError(row)


def find_files(path: str | Sequence[str], root: str | Path | None) -> tuple[Path, ...]:
    """Return the files of a table: one; training and test; or training, validation and test.

    Args:
        path: a file, a list of two or three, or a folder of files named by their role.
        root: folder under which absent paths are looked for.

    Raises:
        DataError: if a file is absent, or several have one role.
        ParameterError: if the list has another length.
    """
    if not isinstance(path, str):
        if len(path) not in (2, 3):
            raise ParameterError(
                "path: a list names the files of training, validation and test, or of training and test; got "
                f"{list(path)}."
            )
        return tuple(_find(name, root) for name in path)
    folder = _find(path, root)
    if not folder.is_dir():
        return (folder,)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    found = {role: [path for path in files if path.name.partition(".")[0].lower() == role] for role in ROLES}
    for role, paths in found.items():
        if len(paths) > 1:
            raise DataError(f"{folder} has {paths[0].name} and {paths[1].name}; one file is to be {role}.")
        if not paths and role != "validation":
            raise DataError(f"{folder} has no file {role}.csv, {role}.tsv or {role}.parquet.")
    return tuple(path for paths in found.values() for path in paths)


def _find(name: str, root: str | Path | None) -> Path:
    candidates = [Path(name).expanduser(), resolve_root(root) / name]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise DataError(
        f"{candidates[0].absolute()} does not exist, nor does {candidates[1].absolute()}. `path` is found from the "
        f"folder in which the command runs, or under `root` or {ROOT_VARIABLE}."
    )


def read_rows(paths: Sequence[Path], dialect: Dialect, texts: Collection[str] | None = ()) -> Rows:
    """Read files with the same columns, in any order of these.

    Args:
        paths: the files; the suffix decides the format: Parquet, Excel, or else text.
        dialect: form of the files.
        texts: columns of text files to read as texts, whatever they look like; None: all.

    Raises:
        DataError: if a file is absent, damaged, of another format or without rows, or columns differ.
    """
    frames: list[pd.DataFrame] = []
    for path in paths:
        try:
            match path.suffix.lower():
                case ".parquet" | ".pq":
                    frames.append(_read_parquet(path, dialect))
                case ".xlsx" | ".xlsm":
                    frames.append(_read_excel(path, dialect))
                case _:
                    frames.append(read_text(path, dialect, texts))
        except FileNotFoundError:
            raise DataError(f"{path.absolute()} does not exist.") from None
        odd = sorted({*frames[0].columns} ^ {*frames[-1].columns})
        if odd:
            has, lacks = (paths[0], path) if odd[0] in frames[0] else (path, paths[0])
            raise DataError(f"{has} has a column {odd[0]!r}, {lacks} has none; {len(odd)} differ.")
        if frames[-1].empty:
            raise DataError(f"{path} has no rows.")
    frame = load_pandas().concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    return Rows(frame, tuple(zip(paths, map(len, frames), strict=True)))


def _read_excel(path: Path, dialect: Dialect) -> pd.DataFrame:
    """Read a sheet of an Excel file, without empty rows and columns."""
    pandas = load_pandas()
    try:
        import openpyxl  # noqa: F401
    except ImportError:
        raise missing_extra("openpyxl", "tables", "an Excel file") from None
    form = {"header": None, "dtype": object, "skiprows": dialect.skip_rows, "keep_default_na": False, "na_values": [""]}
    try:
        check_zip(path)
        with pandas.ExcelFile(path, engine="openpyxl") as book:
            sheets = list(map(str, book.sheet_names))
            if dialect.sheet is not None and dialect.sheet not in sheets:
                raise ParameterError(f"sheet: {path}: {unknown_name('sheet', dialect.sheet, sheets)}")
            cells = pandas.read_excel(book, sheet_name=dialect.sheet or 0, **form)
    except (FileNotFoundError, ParameterError, DataError):
        raise
    except Exception as error:  # a damaged file leads openpyxl to errors of any kind
        raise DataError(f"{path} is no whole Excel file: {error}.") from None
    cells = cells.dropna(how="all").dropna(axis=1, how="all")
    if cells.empty:
        raise DataError(f"{path} is empty.")
    first = cells.head(FIRST_ROWS).fillna("").astype("str").to_numpy().tolist()
    names = check_header(path, first, dialect)
    frame: pd.DataFrame = cells.iloc[1:].set_axis(list(names), axis=1).reset_index(drop=True)
    return frame.mask(frame.isin(list(dialect.missing_values))).infer_objects()


def _read_parquet(path: Path, dialect: Dialect) -> pd.DataFrame:
    """Read a Parquet file; columns of lists and the like count as empty."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "tables", "a Parquet file") from None
    pandas, types = load_pandas(), pyarrow.types
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole Parquet file: {str(error).rstrip('.')}.") from None
    check_names(path, table.column_names)
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_decimal(column.type):
            column = column.cast(pyarrow.float64(), safe=False)
        if types.is_nested(column.type) or types.is_null(column.type) or types.is_binary(column.type):
            column = pyarrow.nulls(len(column))
        series = column.to_pandas(date_as_object=False, integer_object_nulls=True)
        text = pandas.api.types.is_string_dtype(series)
        columns[name] = series.mask(series.isin(dialect.missing_values)) if text else series
    frame: pd.DataFrame = pandas.DataFrame(columns)
    return frame
