"""Tables in Excel files: one sheet, read whole by pandas and openpyxl."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemtl.data.tables.formats import load_pandas
from sparsemtl.data.tables.reading import COMMAS, Dialect, check_names, check_title
from sparsemtl.errors import DataError, ParameterError, missing_extra, unknown_name

if TYPE_CHECKING:
    import pandas as pd

FIRST_ROWS = 20
"""Rows among which a title is told from a header."""


@dataclass(frozen=True)
class ExcelFile:
    """A sheet of an Excel file, .xlsx or .xlsm. Needs the extra `tables`.

    Attributes:
        path: the file.
        dialect: how texts stand for missing values, numbers and dates, and which sheet is read.
    """

    path: Path
    dialect: Dialect = COMMAS

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: the first row.

        Raises:
            DataError: if the sheet is empty, a title stands above the header, or a name stands twice.
        """
        if self._sheet.empty:
            raise DataError(f"{self.path} is empty.")
        first = self._sheet.head(FIRST_ROWS).fillna("").astype("str").to_numpy().tolist()
        check_title(self.path, first, self.dialect.skip_rows)
        names = tuple(str(name).strip() for name in first[0])
        check_names(self.path, names)
        return names

    def with_dialect(self, dialect: Dialect) -> ExcelFile:
        """Give the same file, written in another way."""
        return replace(self, dialect=dialect)

    def frames(
        self, columns: Sequence[str], texts: Collection[str], numbers: Collection[str]
    ) -> Iterator[pd.DataFrame]:
        """Give all rows at once; numbers stay numbers though they are wanted as texts."""
        frame = self._sheet.iloc[1:].set_axis(list(self.columns), axis=1)[list(columns)].reset_index(drop=True)
        yield frame.mask(frame.isin(list(self.dialect.missing_values))).infer_objects()

    @cached_property
    def _sheet(self) -> pd.DataFrame:
        """Cells of the sheet as they are, without empty rows and columns at its ends."""
        pandas = load_pandas()
        try:
            import openpyxl  # noqa: F401
        except ImportError:
            raise missing_extra("openpyxl", "tables", "an Excel file") from None
        try:
            with pandas.ExcelFile(self.path, engine="openpyxl") as book:
                how = {"header": None, "dtype": object, "skiprows": self.dialect.skip_rows, "keep_default_na": False}
                sheet = pandas.read_excel(book, sheet_name=self._name(book.sheet_names), na_values=[""], **how)
        except FileNotFoundError:
            raise DataError(f"{self.path.absolute()} does not exist.") from None
        except ParameterError:
            raise
        except Exception as error:  # openpyxl raises whatever a damaged file leads it to
            raise DataError(f"{self.path} is no whole Excel file: {error}.") from None
        cells: pd.DataFrame = sheet.dropna(how="all").dropna(axis=1, how="all")
        return cells

    def _name(self, sheets: Sequence[Any]) -> str:
        wanted = self.dialect.sheet
        if wanted is not None and wanted not in sheets:
            raise ParameterError(f"sheet: {self.path}: {unknown_name('sheet', wanted, map(str, sheets))}")
        return str(sheets[0]) if wanted is None else wanted
