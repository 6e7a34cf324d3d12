"""Tables in chunks of rows: every column as numbers, or as texts of which each different one is held once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sparsemtl.errors import DataError

Array = npt.NDArray[Any]

CELLS = 5_000_000
"""Values that are read at a time."""


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
    """Which kinds of values a column has.

    Attributes:
        number: its first number.
        text: its first value that is no number.
    """

    number: Spot | None = None
    text: Spot | None = None


@dataclass(frozen=True)
class Looks:
    """What a first reading finds.

    Attributes:
        rows: number of rows.
        seen: column -> which kinds of values it has.
    """

    rows: int
    seen: Mapping[str, Seen]


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


class TableFile(Protocol):
    """A file that holds a table."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""

    def look(self, texts: Collection[str]) -> Looks:
        """Read all rows once, to see what there is; columns named in `texts` are texts whatever they look like."""

    def chunks(self, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
        """Read these columns of all rows.

        Raises:
            DataError: if a value of `numbers` is none, with its row and column; if the file is absent or damaged.
        """


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise if two columns have one name, or a column has none."""
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"{path}: column {place} of {len(names)} has no name. Name it, or save the table without its index."
            )
        if names.index(name) + 1 < place:
            raise DataError(f"{path}: columns {names.index(name) + 1} and {place} are both named {name!r}.")
