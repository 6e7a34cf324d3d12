"""Tables in Parquet files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparsemtl.data.tables.reading import CELLS, Array, Chunk, Looks, Seen, Spot, Texts, check_names
from sparsemtl.errors import DataError, missing_extra


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file. Needs the extra `tables`.

    Attributes:
        path: the file.
        missing_values: texts that stand for a missing value, beside the file's own nulls.
    """

    path: Path
    missing_values: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        names = tuple(field.name for field in self._schema)
        check_names(self.path, names)
        return names

    def look(self, texts: Collection[str]) -> Looks:
        """See what there is: a Parquet file says the kind of every column."""
        seen = {field.name: self._kind(field) for field in self._schema}
        with self._opened() as file:
            return Looks(file.metadata.num_rows, seen)

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        """Read these columns of all rows."""
        first = 0
        columns = [*numbers, *texts]
        with self._opened() as file:
            for batch in file.iter_batches(max(1, CELLS // len(columns)), columns=columns):
                yield Chunk(
                    self.path,
                    first,
                    {name: _numbers(batch.column(name)) for name in numbers},
                    {name: self._texts(batch.column(name)) for name in texts},
                )
                first += len(batch)

    @cached_property
    def _schema(self) -> Any:
        with self._opened() as file:
            return file.schema_arrow
        raise AssertionError  # `_opened` raises whatever it stops

    def _kind(self, field: Any) -> Seen:
        types = _pyarrow().types
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        spot = Spot(0, str(field.type))
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            return Seen(number=spot)
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_boolean(kind):
            return Seen(text=spot)
        return Seen()

    def _texts(self, column: Any) -> Texts:
        """Texts of a column; what is a missing value here is one there."""
        pyarrow = _pyarrow()
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        coded = column.cast(pyarrow.string()).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = tuple(coded.dictionary.to_pylist())
        missing = [code for code, name in enumerate(names) if name in self.missing_values]
        return Texts(np.where(np.isin(codes, missing), -1, codes), names)

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


def _numbers(column: Any) -> Array:
    pyarrow = _pyarrow()
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    numbers: Array = column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "tables", "a Parquet file") from None
    return pyarrow
