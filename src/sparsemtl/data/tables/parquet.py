"""Tables in Parquet files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemtl.data.tables import reading
from sparsemtl.data.tables.formats import load_pandas
from sparsemtl.data.tables.reading import COMMAS, Dialect, check_names
from sparsemtl.errors import DataError, missing_extra

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file. Needs the extra `tables`.

    Attributes:
        path: the file.
        dialect: how texts stand for missing values, numbers and dates.
    """

    path: Path
    dialect: Dialect = COMMAS

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        names = tuple(field.name for field in self._schema)
        check_names(self.path, names)
        return names

    def with_dialect(self, dialect: Dialect) -> ParquetFile:
        """Give the same file, written in another way."""
        return replace(self, dialect=dialect)

    def frames(
        self, columns: Sequence[str], texts: Collection[str], numbers: Collection[str]
    ) -> Iterator[pd.DataFrame]:
        """Read rows in pieces; numbers stay numbers though they are wanted as texts."""
        readable = [name for name in columns if self._readable(name)]
        texts = set(texts)
        with self._opened() as file:
            for batch in file.iter_batches(max(1, reading.CELLS // len(columns)), columns=readable):
                series = {name: self._series(batch.column(name), text=name in texts) for name in readable}
                yield load_pandas().DataFrame(series)

    def _series(self, column: Any, *, text: bool) -> pd.Series[Any]:
        """A column without types of Arrow's own; whole numbers that are wanted as texts keep all their digits."""
        pyarrow = _pyarrow()
        types = pyarrow.types
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if types.is_integer(column.type) and text:
            column = column.cast(pyarrow.string())
        if types.is_decimal(column.type):
            column = column.cast(pyarrow.float64(), safe=False)
        series: pd.Series[Any] = column.to_pandas(date_as_object=False)
        if series.dtype == object or series.dtype == "str":
            return series.mask(series.isin(self.dialect.missing_values))
        return series

    def _readable(self, name: str) -> bool:
        """Return whether a column holds numbers, texts or times rather than lists and such."""
        types, kind = _pyarrow().types, self._schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return not (types.is_nested(kind) or types.is_null(kind) or types.is_binary(kind))

    @cached_property
    def _schema(self) -> Any:
        with self._opened() as file:
            return file.schema_arrow
        raise AssertionError  # `_opened` raises whatever it stops

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        pyarrow = _pyarrow()
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                yield file
        except FileNotFoundError:
            raise DataError(f"{self.path.absolute()} does not exist.") from None
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is no whole Parquet file: {str(error).rstrip('.')}.") from None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "tables", "a Parquet file") from None
    return pyarrow
