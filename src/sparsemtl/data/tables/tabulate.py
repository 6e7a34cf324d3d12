"""From chunks of rows to a data set: surveyed, coded and labelled, with all that was missing or unknown said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.base import TaskData
from sparsemtl.data.tables.coded import CodedSplit, OneHot
from sparsemtl.data.tables.columns import Columns
from sparsemtl.data.tables.embedding import ColumnEmbedding
from sparsemtl.data.tables.encoding import UNKNOWN, Category, Coding, Missing, Number, fit
from sparsemtl.data.tables.reading import Array, Chunk
from sparsemtl.data.tables.survey import PARTS, TRAIN, Survey, placed, survey
from sparsemtl.data.tables.targets import Target
from sparsemtl.errors import SparseMTLWarning

Encoding = Literal["one-hot", "embedding"]
"""What becomes of a category: a column for each, or a vector that the network learns."""
Allocate = Callable[[str, tuple[int, ...], type[np.generic]], Array]
"""Makes an array of a name, shape and type."""


class UnseenCategoryWarning(SparseMTLWarning):
    """Rows have a category that training never saw."""


@dataclass(frozen=True, eq=False)
class Table:
    """A coded table with the labels of its tasks.

    Attributes:
        coded: coded rows, shape (N, columns).
        labels: target -> labels, N of each.
        parts: the part that every row belongs to, shape (N,).
        coding: how the inputs are coded.
        targets: what the tasks learn.
        remarks: what must be said beside every figure.
        unseen: what was found of categories that training never saw.
    """

    coded: Array
    labels: Mapping[str, Array]
    parts: Array
    coding: Coding
    targets: tuple[Target, ...]
    remarks: tuple[str, ...]
    unseen: tuple[str, ...]

    def data(self, name: str, encoding: Encoding) -> TaskData:
        """The data set of a name, with one-hot inputs; or with coded ones, and a stem that embeds them."""
        numeric, cardinalities = self.coding.numeric, self.coding.cardinalities
        expand = OneHot(numeric, cardinalities) if encoding == "one-hot" else None
        coded = torch.from_numpy(self.coded)
        labels = {target: torch.from_numpy(of) for target, of in self.labels.items()}
        train, validation, test = (CodedSplit(coded, labels, rows, expand) for rows in self._rows())
        return TaskData(
            name,
            tuple(target.task() for target in self.targets),
            train,
            validation,
            test,
            notes=(*self.remarks, *self.unseen),
            stem=partial(ColumnEmbedding, cardinalities, numeric) if encoding == "embedding" else None,
        )

    def _rows(self) -> list[Tensor]:
        """The rows of every part, in their order."""
        return [torch.from_numpy((self.parts == part).nonzero()[0]) for part in range(len(PARTS))]


def in_memory(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
    """Allocate in memory."""
    return np.empty(shape, dtype)


def tabulate(
    chunks: Iterable[Chunk],
    parts: Array,
    columns: Columns,
    targets: Sequence[Target],
    *,
    missing: Missing = "refuse",
    most_categories: int = 1000,
    notes: Sequence[str] = (),
    allocate: Allocate = in_memory,
) -> Table:
    """Code a table: once through all rows to see what training holds, once more to code them by it.

    Args:
        chunks: the rows; they can be gone through twice.
        parts: the part that every row belongs to, uint8, shape (N,).
        columns: the inputs.
        targets: what is to be learned.
        missing, most_categories: as in `encoding.fit`.
        notes: what must be said of the rows and columns; what was missing, unknown or scaled is added.
        allocate: makes the arrays.

    Raises:
        DataError: naming the column and, where there is one, the row that does not do.
    """
    numeric = {target.column for target in targets if target.numeric}
    texts = {target.column for target in targets if not target.numeric}
    found = survey(chunks, parts, [*columns.numbers, *sorted(numeric)], [*columns.categories, *sorted(texts)])
    fitted = tuple(target.fitted(found) for target in targets)
    coding = fit(columns, found, missing=missing, most_categories=most_categories)
    coded = allocate("coded", (len(parts), coding.width), np.float32)
    labels = {target.name: allocate(f"label-{target.name}", (len(parts),), target.dtype) for target in fitted}
    unseen = {category.name: Unseen(category.name) for category in coding.categories}
    for start, chunk in placed(chunks):
        rows = slice(start, start + len(chunk))
        coded[rows] = coding.code(chunk)
        for target in fitted:
            labels[target.name][rows] = target.labels(chunk)
        for place, category in enumerate(coding.categories, start=coding.numeric):
            unseen[category.name].add(chunk, coded[rows, place] == UNKNOWN)
    return Table(
        coded,
        labels,
        parts,
        coding,
        fitted,
        (*notes, *_missing(coding, found), *_constant(coding, found), *_unlabelled(fitted, found), *_asked(fitted)),
        tuple(str(column) for column in unseen.values() if column.count),
    )


@dataclass
class Unseen:
    """Rows whose category in one column training never saw.

    Attributes:
        column: which.
        count: number of rows.
        first: the first of them.
    """

    column: str
    count: int = 0
    first: str = ""

    def __str__(self) -> str:
        return (
            f"column {self.column!r}: {self.count} validation or test rows have a category that training never saw, "
            f"{self.first}; it counts as unknown"
        )

    def add(self, chunk: Chunk, unknown: Array) -> None:
        """Take in some rows, of which those where `unknown` is true have such a category."""
        self.count += int(unknown.sum())
        if unknown.any() and not self.first:
            row = int(unknown.argmax())
            codes, names = chunk.texts[self.column]
            value = repr(names[codes[row]]) if codes[row] >= 0 else "a missing value"
            self.first = f"the first is {value} in {chunk.where(row)}"


def _missing(coding: Coding, found: Survey) -> list[str]:
    notes = []
    for column in coding.columns:
        gaps = found[column.name].missing
        if gaps:
            notes.append(
                f"column {column.name!r} is missing in {_by_part(gaps.counts)} rows, {_instead(column, gaps.counts)}"
            )
    return notes


def _instead(column: Number | Category, counts: Array) -> str:
    if isinstance(column, Category):
        return "a category of their own" if counts[TRAIN] else "counted as unknown"
    return "replaced by the mean of training" + (", with a column that says so" if column.indicator else "")


def _constant(coding: Coding, found: Survey) -> list[str]:
    names = [
        column.name
        for column in coding.columns
        if found[column.name].constant and not found[column.name].missing.counts[TRAIN]
    ]
    return [f"the same in all training rows: {', '.join(map(repr, names))}"] if names else []


def _unlabelled(targets: Sequence[Target], found: Survey) -> list[str]:
    gaps = {target.name: found[target.column].missing for target in targets}
    return [f"{name}: {_by_part(gap.counts)} rows have no label" for name, gap in gaps.items() if gap]


def _asked(targets: Sequence[Target]) -> list[str]:
    return [note for target in targets if (note := target.note())]


def _by_part(counts: Array) -> str:
    return ", ".join(f"{count} {part}" for part, count in zip(PARTS, counts.tolist(), strict=True) if count)
