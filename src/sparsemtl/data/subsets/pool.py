"""Samples of several data sets in one row, and some of them with labels of a new task."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sparsemtl.data.base import Samples, Split
from sparsemtl.data.lazy import LazySplit, Sample
from sparsemtl.errors import DataError
from sparsemtl.tasks import Classification

UNKNOWN = -1
"""Class of a sample that has none."""
BATCH = 256
"""Samples that are decoded at once where nothing else says their classes."""


@runtime_checkable
class KnowsLabels(Protocol):
    """A source that tells labels without decoding."""

    def labels_of(self, target: str) -> Tensor:
        """The labels of all samples."""


def classes_of(samples: Samples, task: Classification) -> Tensor:
    """Class of every sample, int64, shape (N,); `UNKNOWN` where there is none."""
    labels = task.labels({task.target: _labels_of(samples, task.target)})
    return torch.where(task.labelled(labels), labels, UNKNOWN)


def _labels_of(samples: Samples, target: str) -> Tensor:
    if isinstance(samples, Split):
        return samples.targets[target]
    if isinstance(samples, LazySplit) and isinstance(samples.source, KnowsLabels):
        return samples.source.labels_of(target)[samples.rows]
    return torch.cat([targets[target] for _, targets in samples.only([target]).loader(BATCH)])


def in_memory_or_lazy(samples: Samples) -> Split | LazySplit:
    """Samples of any kind as one of these two: what is neither decoded nor in memory is put there."""
    if isinstance(samples, (Split, LazySplit)):
        return samples
    ((x, targets),) = samples.loader(len(samples))
    return Split(x, targets)


@dataclass(frozen=True, eq=False)
class Pool:
    """Samples of several data sets, one behind the other.

    Attributes:
        splits: the data sets' samples: all in memory, or all lazy.
        classes: class of every sample, in the numbers of all data sets together, shape (N,).
    """

    splits: Sequence[Split | LazySplit]
    classes: Tensor

    def samples(self, rows: Tensor, target: str, classes: Sequence[int]) -> Split | LazySplit:
        """Some of the samples with their places among some of the classes as labels.

        Args:
            rows: indices of the samples, ascending.
            target: name of the labels.
            classes: the classes, of which all these samples are.
        """
        places = torch.full((max(*classes, int(self.classes.max())) + 1,), UNKNOWN)
        places[list(classes)] = torch.arange(len(classes))
        labels = places[self.classes[rows]]
        starts = [0, *accumulate(map(len, self.splits))]
        own = [rows[(rows >= first) & (rows < last)] - first for first, last in pairwise(starts)]
        in_memory = [split.x for split in self.splits if isinstance(split, Split)]
        if in_memory:
            return Split(_gathered(in_memory, own), {target: labels})
        lazy = [split for split in self.splits if isinstance(split, LazySplit)]
        pieces = tuple(split.select(some) for split, some in zip(lazy, own, strict=True))
        return LazySplit.of(Relabelled(pieces, target, labels), workers=lazy[0].workers, memory=lazy[0].memory)


def _gathered(tensors: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Some rows of every tensor, one below the other, copied once."""
    gathered = tensors[0].new_empty(sum(map(len, rows)), *tensors[0].shape[1:])
    pieces = gathered.split([len(some) for some in rows])
    for tensor, some, piece in zip(tensors, rows, pieces, strict=True):
        torch.index_select(tensor, 0, some, out=piece)
    return gathered


@dataclass(frozen=True, eq=False)
class Relabelled:
    """Samples of sources, one behind the other, with labels of one new target.

    Attributes:
        pieces: the samples.
        target: the target.
        labels: their labels, shape (N,).
    """

    pieces: tuple[LazySplit, ...]
    target: str
    labels: Tensor

    @property
    def targets(self) -> tuple[str, ...]:
        """The one target."""
        return (self.target,)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, row: int) -> str:
        """What the sample's own source calls it."""
        piece, own = self._find(row)
        return piece.source.where(own)

    def labels_of(self, target: str) -> Tensor:
        """All labels."""
        return self.labels

    def sample(self, row: int, targets: Sequence[str]) -> Sample:
        """Decode a sample, without labels of its own source."""
        piece, own = self._find(row)
        x, _, remarks = piece.source.sample(own, ())
        return Sample(x, dict.fromkeys(targets, self.labels[row]), remarks)

    def _find(self, row: int) -> tuple[LazySplit, int]:
        """The piece that a sample is of, and its row in that one's source."""
        ends = list(accumulate(map(len, self.pieces)))
        number = bisect_right(ends, row)
        piece = self.pieces[number]
        return piece, int(piece.rows[row - (ends[number] - len(piece))])


def pool(splits: Sequence[Split | LazySplit], classes: Sequence[Tensor], names: Sequence[str]) -> Pool:
    """Put samples one behind the other.

    Args:
        splits: a data set's samples each.
        classes: their classes, in the numbers of all data sets together.
        names: of the data sets.

    Raises:
        DataError: if inputs differ in shape, or some are in memory and others decoded from files.
    """
    for name, split in zip(names[1:], splits[1:], strict=True):
        if split.shape != splits[0].shape:
            raise DataError(
                f"{names[0]} has inputs of shape {splits[0].shape}, {name} {split.shape}. Give the sources one size, "
                "if they have the parameter `size`, or take one source."
            )
        if type(split) is not type(splits[0]):
            raise DataError(
                f"of {names[0]} and {name} one lies in memory and the other in files; they cannot be joined."
            )
    return Pool(splits, torch.cat(list(classes)))
