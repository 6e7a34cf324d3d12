"""Which rows of a table are for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsemtl.data.splitting import by_classes, hold_out, partition
from sparsemtl.data.tables.files import ROLES, Rows
from sparsemtl.data.tables.reading import Array, TableFile
from sparsemtl.data.tables.survey import PARTS, TEST, TRAIN, VALIDATION
from sparsemtl.data.tables.targets import Target
from sparsemtl.errors import DataError, ParameterError, unknown_name


class Parts(NamedTuple):
    """What every row belongs to.

    Attributes:
        of_rows: the part of every row, uint8, shape (N,).
        note: how they were made.
    """

    of_rows: Array
    note: str


@dataclass(frozen=True)
class Division:
    """How rows are divided.

    Attributes:
        shares: of training, validation and test.
        column: that says it instead; None if there is none.
        seed: of the order.
        stratify: every class of every classification gets these shares, as nearly as numbers allow.
    """

    shares: tuple[float, ...]
    column: str | None
    seed: int
    stratify: bool = True

    def divide(
        self, files: Sequence[TableFile], counts: Sequence[int], rows: Rows, targets: Sequence[Target] = ()
    ) -> Parts:
        """Divide the rows of one file, or say what those of several are.

        Args:
            files: one; training and test; or training, validation and test.
            counts: rows of each.
            rows: the rows of all files, with the targets' columns.
            targets: what is to be learned of them.

        Raises:
            ParameterError: if the shares do not add up to 1, or there are several files and a column.
            DataError: if a part gets no row, or a value of the column is no part's.
        """
        if len(self.shares) != len(PARTS):
            raise ParameterError(f"split: expected the shares of training, validation and test, got {self.shares}.")
        if len(files) == 1 and self.column is not None:
            return self._by_column(files[0], counts[0])
        if self.column is not None:
            raise ParameterError(f"split_column: {len(files)} files say already what their rows belong to.")
        if len(files) == len(PARTS):
            of_rows = np.repeat(np.arange(3, dtype=np.uint8), counts)
            return Parts(of_rows, "training, validation and test rows are of files of their own")
        classes = strata(rows, targets)[:, : counts[0]] if self.stratify else torch.empty(0, counts[0])
        return self._by_shares(files[0], classes) if len(files) == 1 else self._two_files(classes, counts[1])

    def _by_shares(self, file: TableFile, classes: Tensor) -> Parts:
        count = classes.shape[1]
        try:
            rows = partition(count, self.shares, seed=self.seed)
        except DataError as error:
            raise DataError(f"{file.path}: {error}") from None
        if len(classes):
            rows = by_classes(classes.unbind(0), self.shares, seed=self.seed)
        return Parts(assigned(count, rows), random_note(self.shares, self.seed) + _alike(classes))

    def _two_files(self, classes: Tensor, test: int) -> Parts:
        share = self.shares[VALIDATION] / (self.shares[TRAIN] + self.shares[VALIDATION])
        train = classes.shape[1]
        rows: Sequence[Tensor] = hold_out(train, share, seed=self.seed)
        if len(classes):
            rows = by_classes(classes.unbind(0), [1 - share, share], seed=self.seed)
        note = f"validation: {100 * share:.4g} % of the training file's rows at random (seed {self.seed})"
        of_rows = np.concatenate([assigned(train, rows), np.full(test, TEST, np.uint8)])
        return Parts(of_rows, note + _alike(classes))

    def _by_column(self, file: TableFile, count: int) -> Parts:
        assert self.column is not None
        of_rows = np.empty(count, np.uint8)
        start = 0
        for chunk in Rows([file], (), (self.column,)):
            codes, names = chunk.texts[self.column]
            roles = [name.lower() for name in names]
            known = np.array([*(ROLES.index(name) if name in ROLES else 255 for name in roles), 255], np.uint8)
            parts = known[codes]
            if (parts == 255).any():
                row = int((parts == 255).argmax())
                found = names[codes[row]] if codes[row] >= 0 else ""
                raise DataError(f"{chunk.where(row)}: column {self.column!r}: {unknown_name('part', found, ROLES)}")
            of_rows[start : start + len(chunk)] = parts
            start += len(chunk)
        return Parts(of_rows, f"column {self.column!r} says which rows are for training, validation and test")


def strata(rows: Rows, targets: Sequence[Target]) -> Tensor:
    """Classes of all rows by which they are divided, int64, shape (classifications, N); below 0 where there is none."""
    asked = [target for target in targets if target.classifies]
    if not asked:
        return torch.empty(0, sum(map(len, rows)), dtype=torch.long)
    numbered: list[dict[str, int]] = [{} for _ in asked]
    pieces = [
        np.stack([target.stratum(chunk, seen) for target, seen in zip(asked, numbered, strict=True)]) for chunk in rows
    ]
    return torch.from_numpy(np.concatenate(pieces, axis=1))


def _alike(classes: Tensor) -> str:
    return ", of every class" if len(classes) else ""


def random_note(shares: Sequence[float], seed: int) -> str:
    """Say how rows were divided by `partition`."""
    each = ", ".join(f"{100 * share:.4g} % {part}" for share, part in zip(shares, PARTS, strict=True))
    return f"{each} at random (seed {seed})"


def assigned(count: int, rows: Sequence[Tensor]) -> Array:
    """The part of every one of `count` rows, uint8, from the rows of every part."""
    of_rows = np.empty(count, np.uint8)
    for part, members in enumerate(rows):
        of_rows[members.numpy()] = part
    return of_rows
