"""What the training rows of a table hold: the one source of everything that inputs and labels are coded by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsemtl.data.tables.reading import Array, Chunk
from sparsemtl.errors import DataError

TRAIN, VALIDATION, TEST = range(3)
PARTS = ("training", "validation", "test")
"""What a row belongs to, by number."""


@dataclass
class Gaps:
    """Missing values of a column.

    Attributes:
        counts: of every part.
        first: where the first is, "" if there is none.
    """

    counts: Array = field(default_factory=lambda: np.zeros(len(PARTS), np.int64))
    first: str = ""

    def __bool__(self) -> bool:
        return bool(self.first)

    def add(self, gone: Array, parts: Array, chunk: Chunk) -> None:
        """Take in some rows, of which those where `gone` is true have no value."""
        self.counts += np.bincount(parts[gone], minlength=len(PARTS))
        if not self.first and gone.any():
            self.first = chunk.where(int(gone.argmax()))


@dataclass
class Numbers:
    """A column of numbers in the training rows.

    Attributes:
        count: known values.
        mean: theirs.
        squares: sum of their squared deviations from the mean.
        low, high: the least and the greatest.
        missing: missing values of all parts.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    missing: Gaps = field(default_factory=Gaps)

    @property
    def constant(self) -> bool:
        """True if all known values are the same."""
        return self.low == self.high

    @property
    def spread(self) -> float:
        """Standard deviation of the known values, dividing by their number; 0 if they are all the same."""
        return 0.0 if self.constant else float(np.sqrt(self.squares / self.count))

    def add(self, chunk: Chunk, name: str, parts: Array) -> None:
        """Take in some rows (Chan, Golub and LeVeque 1979)."""
        values = chunk.numbers[name]
        _check_finite(chunk, name)
        gone = np.isnan(values)
        self.missing.add(gone, parts, chunk)
        known = values[~gone & (parts == TRAIN)]
        if len(known) == 0:
            return
        mean = float(known.mean())
        off, total = mean - self.mean, self.count + len(known)
        self.squares += float(np.square(known - mean).sum()) + off * off * self.count * len(known) / total
        self.mean += off * len(known) / total
        self.count = total
        self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))


@dataclass
class Names:
    """A column of texts in the training rows.

    Attributes:
        counts: text -> number of rows.
        missing: missing values of all parts.
    """

    counts: dict[str, int] = field(default_factory=dict)
    missing: Gaps = field(default_factory=Gaps)

    @property
    def constant(self) -> bool:
        """True if all known values are the same."""
        return len(self.counts) == 1

    def add(self, chunk: Chunk, name: str, parts: Array) -> None:
        """Take in some rows."""
        codes, names = chunk.texts[name]
        gone = codes < 0
        self.missing.add(gone, parts, chunk)
        counts = np.bincount(codes[~gone & (parts == TRAIN)], minlength=len(names))
        for code in counts.nonzero()[0].tolist():
            self.counts[names[code]] = self.counts.get(names[code], 0) + int(counts[code])


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        path: the first file.
        sizes: rows of every part.
        numbers: column -> what it holds.
        texts: column -> what it holds.
    """

    path: Path
    sizes: tuple[int, ...]
    numbers: dict[str, Numbers]
    texts: dict[str, Names]

    def __getitem__(self, column: str) -> Numbers | Names:
        return self.numbers[column] if column in self.numbers else self.texts[column]


def survey(chunks: Iterable[Chunk], parts: Array, numbers: Sequence[str], texts: Sequence[str]) -> Survey:
    """Go through all rows once.

    Args:
        chunks: the rows.
        parts: the part that every row belongs to, uint8, shape (N,).
        numbers: columns of numbers.
        texts: columns of texts.

    Raises:
        DataError: if a part has no row; if a number is infinite, with its row and column.
    """
    sizes = tuple(np.bincount(parts, minlength=len(PARTS)).tolist())
    columns = {name: Numbers() for name in numbers}, {name: Names() for name in texts}
    path = Path()
    for start, chunk in placed(chunks):
        path = chunk.path if start == 0 else path
        for found in columns:
            for name, column in found.items():
                column.add(chunk, name, parts[start : start + len(chunk)])
    for part, size in zip(PARTS, sizes, strict=True):
        if size == 0:
            raise DataError(f"{path}: of {len(parts)} rows none is left for {part}.")
    return Survey(path, sizes, *columns)


def placed(chunks: Iterable[Chunk]) -> Iterator[tuple[int, Chunk]]:
    """Chunks with the place of their first row among all rows."""
    start = 0
    for chunk in chunks:
        yield start, chunk
        start += len(chunk)


def _check_finite(chunk: Chunk, name: str) -> None:
    numbers = chunk.numbers[name]
    beyond = np.abs(numbers) > np.finfo(np.float32).max
    if beyond.any():
        row = int(beyond.argmax())
        why = "is not finite" if np.isinf(numbers[row]) else "is beyond the range of single precision"
        raise DataError(f"{chunk.where(row)}: column {name!r} holds {numbers[row]}, which {why}.")
