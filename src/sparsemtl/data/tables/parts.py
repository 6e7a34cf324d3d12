"""Division of a table's rows into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.splitting import by_classes, partition
from sparsemtl.data.tables.formats import load_pandas
from sparsemtl.data.tables.rows import ROLES, Array, Rows
from sparsemtl.data.tables.targets import AnyTarget, ClassTarget
from sparsemtl.errors import DataError, ParameterError, unknown_name

TRAIN, VALIDATION, TEST = range(3)
PARTS = ("training", "validation", "test")
"""Names of the parts, by number."""


class RowParts(NamedTuple):
    """Parts of all rows.

    Attributes:
        of_rows: number of each row's part, uint8, shape (N,).
        note: how they were made.
    """

    of_rows: Array
    note: str


def draw(count: int, shares: Sequence[float], seed: int) -> RowParts:
    """Draw the parts of rows at random."""
    each = ", ".join(f"{100 * share:.4g} % {part}" for share, part in zip(shares, PARTS, strict=True))
    return RowParts(assigned(count, partition(count, shares, seed=seed)), f"{each} at random (seed {seed})")


def divide(rows: Rows, targets: Sequence[AnyTarget], shares: Sequence[float], seed: int, *, stratify: bool) -> RowParts:
    """Divide the rows of one file, or return what those of several are.

    Args:
        rows: rows of one file; of training and test; or of training, validation and test.
        targets: targets of the tasks.
        shares: of training, validation and test.
        seed: of the order.
        stratify: give every class of every classification these shares, as nearly as numbers allow.

    Raises:
        ParameterError: if there are not three shares, or they do not add up to 1.
        DataError: if there are too few rows for a part to get one, or, with `stratify`, too few per class.
    """
    (path, count), *others = rows.files
    if len(shares) != len(PARTS):
        raise ParameterError(f"split: expected the shares of training, validation and test, got {shares}.")
    if len(others) == 2:
        of_rows = np.repeat(np.arange(3, dtype=np.uint8), [count, *(count for _, count in others)])
        return RowParts(of_rows, "training, validation and test rows are of files of their own")
    try:
        if others:
            share = shares[VALIDATION] / (shares[TRAIN] + shares[VALIDATION])
            shares = [1 - share, share]
            note = f"validation: {100 * share:.4g} % of the training file's rows at random (seed {seed})"
            parts = RowParts(assigned(count, partition(count, shares, seed=seed)), note)
        else:
            parts = draw(count, shares, seed)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if stratify and (classes := [of[:count] for of in _strata(rows, targets)]):
        members = by_classes(classes, shares, seed=seed)
        _check_left(path, count, members)
        of_rows = assigned(count, members)
        parts = RowParts(of_rows, f"{parts.note}, of every class")
    test = np.full(sum(count for _, count in others), TEST, np.uint8)
    return RowParts(np.append(parts.of_rows, test), parts.note)


def _check_left(path: object, count: int, members: Sequence[Tensor]) -> None:
    """Raise a DataError if a part has no row since rare classes have theirs in training."""
    empty = next((name for name, own in zip(PARTS, members, strict=False) if len(own) == 0), None)
    if empty is not None:
        raise DataError(
            f"{path}: 0 of {count} rows are left for {empty}, since every class has its first row in training. "
            "Expected classes with several rows: add rows, join rare classes, or split without regard to classes "
            "(`stratify: false`)."
        )


def by_column(rows: Rows, name: str) -> RowParts:
    """Return the parts that a column names.

    Raises:
        ParameterError: if there are several files.
        DataError: if a value names no part.
    """
    if len(rows.files) > 1:
        raise ParameterError(f"split_column: {len(rows.files)} files say already what their rows belong to.")
    values = rows.frame[name].fillna("")
    of_rows = load_pandas().Index(ROLES).get_indexer(values.str.lower())
    if (unknown := of_rows < 0).any():
        found = unknown_name("part", values[unknown].iloc[0], ROLES)
        raise DataError(f"{rows.where(unknown)}: column {name!r}: {found}")
    return RowParts(of_rows.astype(np.uint8), f"column {name!r} says which rows are for training, validation and test")


def _strata(rows: Rows, targets: Sequence[AnyTarget]) -> list[Tensor]:
    """Return the classes of each classification, int64, shape (N,); below 0 where there is none."""
    classes = [
        target.labels(rows)
        if target.numeric or target.equals is not None
        else load_pandas().factorize(rows.frame[target.column])[0].astype(np.int64)
        for target in targets
        if isinstance(target, ClassTarget)
    ]
    return [torch.from_numpy(of) for of in classes]


def assigned(count: int, rows: Sequence[Tensor]) -> Array:
    """Return the part of each of `count` rows, uint8, from the rows of each part."""
    of_rows = np.empty(count, np.uint8)
    for part, members in enumerate(rows):
        of_rows[members.numpy()] = part
    return of_rows
