"""Data sets joined to one pool of samples per split, and some of the samples with labels of a new task."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.data.base import Part, Samples, Split, TaskData
from sparsemtl.data.lazy import DecodedSample, LazySplit
from sparsemtl.errors import DataError, ParameterError, unknown_name
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.registry.registry import Registry
from sparsemtl.tasks import Classification

UNKNOWN = -1
"""Class of a sample without one."""
BATCH = 256
"""Number of samples that are decoded at once to read their classes."""
_SourceSpec = str | Mapping[str, Any]
"""Name of a data set, or a mapping of its `name`, its `task` and its parameters."""


def classes_of(samples: Samples, task: Classification) -> Tensor:
    """Return the class of every sample, int64, shape (N,); `UNKNOWN` where there is none."""
    if isinstance(samples, Split):
        labels = samples.targets[task.target]
    elif isinstance(samples, LazySplit) and (labels_of := getattr(samples.source, "labels_of", None)):
        labels = labels_of(task.target)[samples.rows]  # known without decoding
    else:
        labels = torch.cat([targets[task.target] for _, targets in samples.only([task.target]).loader(BATCH)])
    labels = task.labels({task.target: labels})
    return torch.where(task.labelled(labels), labels, UNKNOWN)


@dataclass(frozen=True, eq=False)
class Pool:
    """Samples of several data sets, one behind the other."""

    splits: Sequence[Split | LazySplit]  # all in memory, or all lazy
    classes: Tensor  # class of every sample, numbered over all data sets, (N,)

    def samples(self, rows: Tensor, target: str, classes: Sequence[int]) -> Split | LazySplit:
        """Return some of the samples, labelled with the indices of their classes among some of the classes.

        Args:
            rows: indices of the samples, ascending.
            target: name of the labels.
            classes: classes of the samples.
        """
        indices = torch.full((max(*classes, int(self.classes.max())) + 1,), UNKNOWN)
        indices[list(classes)] = torch.arange(len(classes))
        labels = indices[self.classes[rows]]
        starts = [0, *accumulate(map(len, self.splits))]
        own = [rows[(rows >= first) & (rows < last)] - first for first, last in pairwise(starts)]
        in_memory = [split.x for split in self.splits if isinstance(split, Split)]
        if in_memory:
            return Split(_gathered(in_memory, own), {target: labels})
        lazy = [split for split in self.splits if isinstance(split, LazySplit)]
        pieces = tuple(split.select(some) for split, some in zip(lazy, own, strict=True))
        return LazySplit.of(_Relabelled(pieces, target, labels), workers=lazy[0].workers, memory=lazy[0].memory)


def _gathered(tensors: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Return some rows of every tensor, one below the other, copied once."""
    gathered = tensors[0].new_empty(sum(map(len, rows)), *tensors[0].shape[1:])
    pieces = gathered.split([len(some) for some in rows])
    for tensor, some, piece in zip(tensors, rows, pieces, strict=True):
        torch.index_select(tensor, 0, some, out=piece)
    return gathered


@dataclass(frozen=True, eq=False)
class _Relabelled:
    """Samples of lazy splits, one behind the other, with `labels` (N,) of one new target."""

    pieces: tuple[LazySplit, ...]
    target: str
    labels: Tensor

    @property
    def targets(self) -> tuple[str, ...]:
        """Name of the one target."""
        return (self.target,)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, row: int) -> str:
        """Return the name of a sample in its own source."""
        piece, own = self._find(row)
        return piece.source.where(own)

    def labels_of(self, target: str) -> Tensor:
        """Return all labels."""
        return self.labels

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        """Decode a sample, without labels of its own source."""
        piece, own = self._find(row)
        x, _, remarks = piece.source.sample(own, ())
        return DecodedSample(x, dict.fromkeys(targets, self.labels[row]), remarks)

    def _find(self, row: int) -> tuple[LazySplit, int]:
        """Return the piece of a sample, and its row in the source of the piece."""
        ends = list(accumulate(map(len, self.pieces)))
        number = bisect_right(ends, row)
        piece = self.pieces[number]
        return piece, int(piece.rows[row - (ends[number] - len(piece))])


@dataclass(frozen=True, eq=False)
class JoinedData:
    """Data sets joined."""

    names: tuple[str, ...]  # of all classes
    pools: tuple[Pool, Pool, Pool]  # training, validation and test samples
    notes: tuple[str, ...]
    stem: Callable[[], nn.Module] | None  # see `TaskData`


def join(
    datasets: Registry[TaskData], specs: _SourceSpec | Sequence[_SourceSpec], root: str | Path | None, *, download: bool
) -> JoinedData:
    """Make data sets, and number their classes.

    Args:
        datasets: registry of data sets.
        specs: data sets to make.
        root: their root, for those that have no own.
        download: whether they may download files.
    """
    each = [specs] if isinstance(specs, (str, Mapping)) else list(specs)
    sources = [_load(datasets, one, root, download=download) for one in each]
    titles = [data.name for data, _ in sources]
    if not sources or len(set(titles)) < len(titles):
        raise ParameterError(f"source: expected one or more data sets, each once; got {', '.join(titles) or 'none'}.")
    several = len(sources) > 1
    stemmed = [data.name for data, _ in sources if data.stem is not None]
    if several and stemmed:
        raise ParameterError(f"source: {stemmed[0]} goes through a stem of its own and cannot be joined with others.")
    names = [f"{data.name}/{name}" if several else name for data, task in sources for name in task.class_names]
    notes = [f"{data.name}: {note}" for data, _ in sources for note in data.notes]
    tasks = [task for _, task in sources]
    train, validation, test = (
        _pooled([getattr(data, part) for data, _ in sources], tasks, titles) for part in ("train", "validation", "test")
    )
    return JoinedData(tuple(names), (train, validation, test), tuple(notes), sources[0][0].stem)


def _pooled(parts: Sequence[Part], tasks: Sequence[Classification], titles: Sequence[str]) -> Pool:
    splits: list[Split | LazySplit] = []
    classes, first = [], 0
    for part, task, title in zip(parts, tasks, titles, strict=True):
        samples = part[task.name] if isinstance(part, Mapping) else part
        own = classes_of(samples, task)
        classes.append((own + first).masked_fill(own == UNKNOWN, UNKNOWN))
        first += task.classes
        if not isinstance(samples, (Split, LazySplit)):
            ((x, targets),) = samples.loader(len(samples))
            samples = Split(x, targets)
        if splits and samples.shape != splits[0].shape:
            raise DataError(
                f"{titles[0]} has inputs of shape {splits[0].shape}, {title} {samples.shape}. Give the sources one "
                "size, if they have the parameter `size`, or take one source."
            )
        if splits and type(samples) is not type(splits[0]):
            raise DataError(
                f"of {titles[0]} and {title} one lies in memory and the other in files; they cannot be joined."
            )
        splits.append(samples)
    return Pool(splits, torch.cat(classes))


def _load(
    datasets: Registry[TaskData], spec: _SourceSpec, root: str | Path | None, *, download: bool
) -> tuple[TaskData, Classification]:
    """Return a data set and its classification."""
    given: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name, wanted = given.pop("name", None), given.pop("task", None)
    if not isinstance(name, str):
        raise ParameterError(f"source: expected a data set's name, or a mapping that has its `name`; got {spec!r}.")
    known = parameters_of(datasets[name])
    common = {key: value for key, value in (("root", root), ("download", download)) if key in known}
    data = datasets.build(name, **{**common, **given})
    tasks = {task.name: task for task in data.tasks if isinstance(task, Classification)}
    if wanted is None and len(tasks) == 1:
        return data, next(iter(tasks.values()))
    if wanted is None:
        found = f"the classifications {', '.join(tasks)}; say which by `task`" if tasks else "no classification"
        raise ParameterError(f"source: {data.name} has {found}.")
    if wanted not in tasks:
        raise ParameterError(f"source: {data.name}: {unknown_name('classification', wanted, tasks)}")
    return data, tasks[wanted]
