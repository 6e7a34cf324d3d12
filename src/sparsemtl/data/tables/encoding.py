"""Columns of inputs as numbers: standardised, or a category's code, by what the training rows hold alone.

A coded row has the numbers first, then a 1 or 0 for every number that may be missing, then a code for every category:
0 stands for one that training never saw, and is nothing (no one-hot column, an embedding of zeros).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Literal

import numpy as np

from sparsemtl.data.tables.columns import Columns
from sparsemtl.data.tables.reading import Array, Chunk
from sparsemtl.data.tables.survey import TRAIN, Names, Numbers, Survey
from sparsemtl.errors import DataError

Missing = Literal["indicator", "mean", "refuse"]
"""What becomes of a number that is missing."""
UNKNOWN = 0
"""Code of a category that training never saw."""


@dataclass(frozen=True)
class Number:
    """A column of numbers.

    Attributes:
        name: of the column.
        mean: what becomes 0, and stands for a missing value.
        spread: what becomes a difference of 1, above 0.
        indicator: a further column says where the value is missing.
    """

    name: str
    mean: float
    spread: float
    indicator: bool = False

    def code(self, values: Array) -> Array:
        """Standardised values (N,), float32; zero where missing."""
        coded: Array = np.nan_to_num((values - self.mean) / self.spread, copy=False, nan=0.0).astype(np.float32)
        return coded


@dataclass(frozen=True)
class Category:
    """A column of categories.

    Attributes:
        name: of the column.
        values: the categories in training, in order; the first has code 1. None stands for a missing value.
    """

    name: str
    values: tuple[str | None, ...]

    @property
    def cardinality(self) -> int:
        """Number of codes, that of the unknown among them."""
        return len(self.values) + 1

    def code(self, chunk: Chunk) -> Array:
        """Codes (N,)."""
        texts = chunk.texts[self.name]
        codes = self._codes
        known = np.array([codes.get(name, UNKNOWN) for name in (*texts.names, None)], dtype=np.int32)
        return known[texts.codes]  # a missing value's place is -1, the last

    @cached_property
    def _codes(self) -> dict[str | None, int]:
        return {value: code for code, value in enumerate(self.values, start=1)}


@dataclass(frozen=True)
class Coding:
    """How the inputs are coded.

    Attributes:
        numbers: columns of numbers.
        categories: columns of categories.
    """

    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]

    @property
    def columns(self) -> tuple[Number | Category, ...]:
        """All of them."""
        return (*self.numbers, *self.categories)

    @property
    def numeric(self) -> int:
        """Width of the coded numbers, with those that say where one is missing."""
        return len(self.numbers) + sum(number.indicator for number in self.numbers)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of every category."""
        return tuple(category.cardinality for category in self.categories)

    @property
    def width(self) -> int:
        """Width of a coded row."""
        return self.numeric + len(self.categories)

    def code(self, chunk: Chunk) -> Array:
        """Coded rows (N, width), float32."""
        columns = [
            *(number.code(chunk.numbers[number.name]) for number in self.numbers),
            *(np.isnan(chunk.numbers[number.name]) for number in self.numbers if number.indicator),
            *(category.code(chunk) for category in self.categories),
        ]
        coded = np.empty((len(chunk), self.width), np.float32)
        for place, column in enumerate(columns):
            coded[:, place] = column
        return coded


def fit(columns: Columns, found: Survey, *, missing: Missing, most_categories: int) -> Coding:
    """Make the coding of the inputs.

    Args:
        columns: the inputs.
        found: what the training rows hold.
        missing: replace a missing number by the mean of training, with or without an indicator where training has such;
            or refuse it. A missing category is one of its own.
        most_categories: that a column may have.

    Raises:
        DataError: if training knows no value of a column, or too many categories; if a missing value is refused.
    """
    for name in (*columns.numbers, *columns.categories):
        _check(name, found, refuse=missing == "refuse", most=most_categories)
    return Coding(
        tuple(_number(name, found.numbers[name], indicator=missing == "indicator") for name in columns.numbers),
        tuple(_category(name, found.texts[name]) for name in columns.categories),
    )


def _number(name: str, found: Numbers, *, indicator: bool) -> Number:
    mean, spread = (found.low, 1.0) if found.constant else (found.mean, found.spread)  # without what rounding leaves
    return Number(name, mean, spread, indicator and bool(found.missing.counts[TRAIN]))


def _category(name: str, found: Names) -> Category:
    return Category(name, (*in_order(found.counts), *([None] if found.missing.counts[TRAIN] else [])))


def _check(name: str, survey: Survey, *, refuse: bool, most: int) -> None:
    found = survey[name]
    if refuse and found.missing:
        raise DataError(
            f"{found.missing.first}: column {name!r} has no value here, and {found.missing.counts.sum()} in all have "
            "none. `missing: indicator` or `missing: mean` would replace it."
        )
    if isinstance(found, Names) and len(found.counts) > most:
        raise DataError(
            f"{survey.path}: column {name!r} has {len(found.counts):,} categories in the training rows, as "
            f"{min(found.counts)!r}; at most {most:,} are taken. If it says nothing of other rows, name it in `drop`; "
            "else raise `most_categories`."
        )
    if not (found.counts if isinstance(found, Names) else found.count):
        raise DataError(f"{survey.path}: column {name!r} has no value in the training rows. Name it in `drop`.")


def in_order(names: Iterable[str]) -> list[str]:
    """Texts sorted; by size if all are finite numbers."""
    try:
        sizes = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    return sorted(sizes, key=lambda name: (sizes[name], name)) if all(map(isfinite, sizes.values())) else sorted(names)
