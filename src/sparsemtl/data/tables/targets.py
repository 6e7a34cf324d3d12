"""What tasks are to be learned from which columns, and their labels."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from sparsemtl.data.tables.encoding import in_order
from sparsemtl.data.tables.reading import Array, Chunk
from sparsemtl.data.tables.survey import PARTS, Numbers, Survey
from sparsemtl.errors import DataError, unknown_name
from sparsemtl.tasks import Classification, Regression, Task

UNLABELLED = -100
"""The class of a row that has no label."""
MARKS = frozenset({"?", "-", "--", ".", "none", "missing", "unknown", "n.a."})
"""Names, in small letters, that stand for a missing value in many a table, and for a class in others."""


@dataclass(frozen=True)
class Target(abc.ABC):
    """What one task learns from one column.

    Attributes:
        name: the task's.
        column: the column.
        options: further arguments of the task.
    """

    name: str
    column: str
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    @abc.abstractmethod
    def numeric(self) -> bool:
        """True if the column must hold numbers."""

    @property
    def dtype(self) -> type[np.generic]:
        """Of the labels."""
        return np.int64

    @abc.abstractmethod
    def task(self) -> Task:
        """Make the task."""

    @abc.abstractmethod
    def labels(self, chunk: Chunk) -> Array:
        """Labels of some rows (N,), of `dtype`: classes or values; `UNLABELLED` or NaN where there is none.

        Raises:
            DataError: if a label is none of the task's, with its row and column.
        """

    @property
    def classifies(self) -> bool:
        """True if its labels are classes."""
        return True

    def stratum(self, chunk: Chunk, seen: dict[str, int]) -> Array:
        """Class of some rows before anything is known of training (N,), int64; `UNLABELLED` where there is none.

        Args:
            chunk: the rows.
            seen: number of every class that earlier rows had; new ones are added.
        """
        return self.labels(chunk)

    def fitted(self, found: Survey) -> Target:
        """The target with all that it takes from the training rows.

        Raises:
            DataError: if a part has no label, or training has the same one in all rows.
        """
        column = found[self.column]
        for part, size, missing in zip(PARTS, found.sizes, column.missing.counts.tolist(), strict=True):
            if size == missing:
                raise DataError(f"{found.path}: the target {self.column!r} has no value in the {size} {part} rows.")
        if column.constant:
            value = f"{column.low:g}" if isinstance(column, Numbers) else repr(min(column.counts))
            raise DataError(
                f"{found.path}: the target {self.column!r} is {value} in all training rows; there is nothing to learn."
            )
        return self

    def note(self) -> str:
        """What must be said of its labels beside every figure; "" if nothing."""
        return ""


@dataclass(frozen=True)
class Classes(Target):
    """The classes are the column's values.

    Attributes:
        classes: in order; by default those of the training rows, sorted.
    """

    classes: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Classes may be texts."""
        return False

    def fitted(self, found: Survey) -> Target:
        """With the classes that training has, unless they are given."""
        super().fitted(found)
        return self if self.classes else replace(self, classes=tuple(in_order(found.texts[self.column].counts)))

    def note(self) -> str:
        """Classes whose names often stand for a missing value."""
        marks = [name for name in self.classes if name.lower() in MARKS and not (name == "-" and "+" in self.classes)]
        if not marks:
            return ""
        named = ", ".join(map(repr, marks))
        return f"{self.name}: {named} counts as a class. If it stands for a missing label, add it to `missing_values`"

    def stratum(self, chunk: Chunk, seen: dict[str, int]) -> Array:
        """The numbers of the classes, in the order in which they come."""
        codes, names = chunk.texts[self.column]
        numbers: Array = np.array([*(seen.setdefault(name, len(seen)) for name in names), UNLABELLED], np.int64)[codes]
        return numbers

    def task(self) -> Task:
        """A classification."""
        return Classification(self.name, self.classes, **self.options)

    def labels(self, chunk: Chunk) -> Array:
        """The classes' places."""
        codes, names = chunk.texts[self.column]
        places = {name: place for place, name in enumerate(self.classes)}
        known = np.array([*(places.get(name, -1) for name in names), UNLABELLED], dtype=np.int64)
        labels: Array = known[codes]  # a missing value's place is -1, the last
        if (labels == -1).any():
            row = int((labels == -1).argmax())
            raise DataError(
                f"{chunk.where(row)}: {names[codes[row]]!r} in the target {self.column!r} is none of the classes "
                f"{', '.join(self.classes)}. `targets: {{{self.column}: {{kind: classification, classes: [...]}}}}` "
                "names them all."
            )
        return labels


@dataclass(frozen=True)
class Equals(Target):
    """Whether the column has a certain value.

    Attributes:
        value: which, as text.
    """

    value: str = ""

    @property
    def numeric(self) -> bool:
        """Any value will do."""
        return False

    def fitted(self, found: Survey) -> Target:
        """Unchanged, if training has the value."""
        super().fitted(found)
        names = found.texts[self.column].counts
        if self.value not in names:
            raise DataError(
                f"{found.path}: the target {self.column!r} has in training: {unknown_name('value', self.value, names)}"
            )
        return self

    def task(self) -> Task:
        """A classification of no and yes."""
        return Classification(self.name, ["no", "yes"], **self.options)

    def labels(self, chunk: Chunk) -> Array:
        """1 where it has."""
        codes, names = chunk.texts[self.column]
        known = np.array([*(name == self.value for name in names), UNLABELLED], dtype=np.int64)
        labels: Array = known[codes]
        return labels

    def note(self) -> str:
        """What is asked."""
        return f"{self.name}: whether {self.column!r} is {self.value!r}"


@dataclass(frozen=True)
class Above(Target):
    """Whether the column's number is above a limit.

    Attributes:
        limit: which.
    """

    limit: float = 0.0

    @property
    def numeric(self) -> bool:
        """Only numbers are above others."""
        return True

    def fitted(self, found: Survey) -> Target:
        """Unchanged, if training has numbers on both sides."""
        super().fitted(found)
        column = found.numbers[self.column]
        if column.high <= self.limit or column.low > self.limit:
            raise DataError(
                f"{found.path}: the target {self.column!r} lies in {column.low:g} .. {column.high:g} in all training "
                f"rows; whether it is above {self.limit:g} is nothing to learn."
            )
        return self

    def task(self) -> Task:
        """A classification of no and yes."""
        return Classification(self.name, ["no", "yes"], **self.options)

    def labels(self, chunk: Chunk) -> Array:
        """1 where it is."""
        values = chunk.numbers[self.column]
        return np.where(np.isnan(values), UNLABELLED, values > self.limit).astype(np.int64)

    def note(self) -> str:
        """What is asked."""
        return f"{self.name}: whether {self.column!r} is above {self.limit:g}"


Scale = Literal["standard", "unit"]


@dataclass(frozen=True)
class Value(Target):
    """The column's number itself, `offset + factor * label`.

    Attributes:
        scale: choose offset and factor such that the labels of training have mean 0 and standard deviation 1
            (`standard`), or least 0 and greatest 1 (`unit`); None: as they are given.
        offset: the number whose label is 0.
        factor: how much more has the label 1, above 0.
    """

    scale: Scale | None = None
    offset: float = 0.0
    factor: float = 1.0

    @property
    def numeric(self) -> bool:
        """It must be a number."""
        return True

    @property
    def classifies(self) -> bool:
        """It is a regression."""
        return False

    @property
    def dtype(self) -> type[np.generic]:
        """Real numbers."""
        return np.float32

    def fitted(self, found: Survey) -> Target:
        """With offset and factor of the training rows."""
        super().fitted(found)
        column = found.numbers[self.column]
        match self.scale:
            case "standard":
                return replace(self, offset=column.mean, factor=column.spread)
            case "unit":
                return replace(self, offset=column.low, factor=column.high - column.low)
        return self

    def task(self) -> Task:
        """A regression."""
        return Regression(self.name, **self.options)

    def labels(self, chunk: Chunk) -> Array:
        """Scaled numbers."""
        return ((chunk.numbers[self.column] - self.offset) / self.factor).astype(np.float32)

    def note(self) -> str:
        """The way back."""
        if self.offset == 0 and self.factor == 1:
            return ""
        start = f"{self.offset:.9g} + " if self.offset else ""
        return f"{self.name}: {self.column!r} is {start}{self.factor:.9g} * its label"
