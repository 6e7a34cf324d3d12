"""Data sets: their tasks, their three splits, and loaders.

`Samples` is the interface of a split. `Split` holds its samples in memory; `lazy.LazySplit` decodes them from files.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsemtl.errors import DataError, ParameterError, check_list, unknown_name
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.tasks import Task
from sparsemtl.tasks.nests import map_tensors, tensors_in


class BatchLoader(abc.ABC):
    """Choice of the samples of every batch: in order or shuffled, all batches or full ones only.

    Args:
        dataset_size: number of samples.
        batch_size: samples per batch; the last batch may be smaller.
        shuffle: draw a new order at the start of every pass.
        drop_last: leave out a last batch that is not full.
        generator: generator of the order; by default torch's global one, whose state determines the order.

    Raises:
        DataError: if there is no batch to yield.
    """

    def __init__(
        self, dataset_size: int, *, batch_size: int, shuffle: bool, drop_last: bool, generator: torch.Generator | None
    ) -> None:
        self.dataset_size = dataset_size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = generator
        if len(self) == 0:
            raise DataError(
                f"{dataset_size} samples make no batch of {batch_size}"
                + (" with drop_last; take smaller batches or keep the last one." if drop_last else ".")
            )

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        full, rest = divmod(self.dataset_size, self.batch_size)
        return full + bool(rest and not self.drop_last)

    def order(self) -> tuple[Tensor, ...]:
        """Draw the indices of the samples of every batch of a pass."""
        size = self.dataset_size
        order = torch.randperm(size, generator=self.generator) if self.shuffle else torch.arange(size)
        return torch.split(order, self.batch_size)[: len(self)]

    @abc.abstractmethod
    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Return one pass of pairs (inputs, targets); its order is drawn at once."""


class TensorLoader(BatchLoader):
    """Batches of tensors that are held in memory: one gather per batch, no worker processes.

    Batches are copies: a network that works in place on its input does not change the data.

    Args:
        x: inputs, a tensor or any nest of tensors, all of N samples.
        targets: target -> labels, or one task's labels; N of each.
        batch_size: samples per batch.
        shuffle: draw a new order for every pass.
        drop_last: leave out a last batch that is not full.
        generator: generator of the order; the global one by default.

    Raises:
        DataError: if lengths differ or there is no batch to yield.
    """

    @validated
    def __init__(
        self,
        x: Any,
        targets: Mapping[str, Tensor] | Tensor,
        *,
        batch_size: Count = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.x = x
        self.targets: dict[str, Tensor] | Tensor = dict(targets) if isinstance(targets, Mapping) else targets
        size = _common_length(x, self.targets)
        super().__init__(size, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = self.order()
        return (gather((self.x, self.targets), rows) for rows in order)


def gather(nest: Any, rows: Tensor) -> Any:
    """Return copies of the samples `rows` of every tensor of a nest."""
    return map_tensors(lambda tensor: tensor[rows.to(tensor.device)], nest)


def _common_length(x: Any, targets: Mapping[str, Tensor] | Tensor) -> int:
    inputs = {len(tensor) for tensor in tensors_in(x)}
    if len(inputs) != 1:
        raise DataError(f"inputs must be tensors of one length, found lengths {sorted(inputs)}.")
    (length,) = inputs
    for name, labels in (targets if isinstance(targets, Mapping) else {"labels": targets}).items():
        if len(labels) != length:
            raise DataError(f"target {name!r} has {len(labels)} labels for {length} samples.")
    return length


class Samples(Protocol):
    """Samples with the labels of their tasks, in memory or in files."""

    @property
    def targets(self) -> Collection[str]:
        """Names of the targets with labels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def loader(self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> BatchLoader:
        """Return a loader of the samples."""

    def select(self, rows: Tensor) -> Samples:
        """Return the samples at these indices, in their order."""

    def only(self, targets: Sequence[str]) -> Samples:
        """Return the same samples with the labels of these targets alone."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples in memory: inputs `x` of shape (N, ...), and target -> N labels."""

    x: Tensor
    targets: dict[str, Tensor]

    def __post_init__(self) -> None:
        _common_length(self.x, self.targets)

    def __repr__(self) -> str:
        return shown(self)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])

    def loader(self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> TensorLoader:
        """Return a loader of the samples."""
        return TensorLoader(self.x, self.targets, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)

    def select(self, rows: Tensor) -> Split:
        """Return the samples at these indices, in their order."""
        return Split(self.x[rows], {name: labels[rows] for name, labels in self.targets.items()})

    def only(self, targets: Sequence[str]) -> Split:
        """Return the same samples with the labels of these targets alone."""
        return Split(self.x, {name: self.targets[name] for name in targets})


def shown(samples: Samples) -> str:
    """Return a split in words, without its values: "Split(280 samples; targets digit, slant)"."""
    return f"{type(samples).__name__}({len(samples):,} samples; targets {', '.join(samples.targets)})"


Part = Samples | Mapping[str, Samples]
"""One of training, validation and test: samples for all tasks, or task -> samples of its own."""
Loaders = BatchLoader | dict[str, BatchLoader]
"""One loader for all tasks, or one per task."""


@dataclass(frozen=True, eq=False)
class TaskData:
    """A data set with its tasks.

    Attributes:
        name: registered name of the data set.
        tasks: tasks of the data set.
        train: training samples; one split, or task -> split if every task has inputs of its own.
        validation: samples of model selection.
        test: samples of the final evaluation.
        notes: notes for every report, such as the choice of the splits.
        stem: factory of the module before any encoder, such as the embedding of a table's categories; its
            `out_features` is the width of the encoder's input. None: encoders read the inputs themselves.

    Raises:
        DataError: if a task has no samples or no labels in one of the parts.
    """

    name: str
    tasks: tuple[Task, ...]
    train: Part
    validation: Part
    test: Part
    notes: tuple[str, ...] = ()
    stem: Callable[[], nn.Module] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, part in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            if isinstance(part, Mapping) != self.heterogeneous:
                form = "per task" if self.heterogeneous else "for all tasks"
                raise DataError(f"{self.name}: training data has one split {form}, {name} data has not.")
            for task in self.tasks:
                split = part.get(task.name) if isinstance(part, Mapping) else part
                if split is None or task.target not in split.targets:
                    raise DataError(f"{self.name}: the {name} data has no labels of task {task.name!r}.")

    def __repr__(self) -> str:
        tasks = ", ".join(map(repr, self.tasks))
        sizes = f"{_size(self.train)} training, {_size(self.validation)} validation, {_size(self.test)} test samples"
        return f"TaskData({self.name!r}, {tasks}; {sizes})"

    @property
    def heterogeneous(self) -> bool:
        """True if every task has inputs of its own."""
        return isinstance(self.train, Mapping)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, the argument of an encoder's builder.

        Raises:
            DataError: if the tasks' inputs have different shapes.
        """
        shapes = {split.shape for split in (self.train.values() if isinstance(self.train, Mapping) else [self.train])}
        if len(shapes) > 1:
            raise DataError(f"{self.name}: the tasks' inputs have different shapes {sorted(shapes)}.")
        return shapes.pop()

    def loaders(
        self, batch_size: int, *, evaluation_batch_size: int | None = None, drop_last: bool = False
    ) -> tuple[Loaders, Loaders, Loaders]:
        """Return the loaders of training (shuffled), validation and test data (in order).

        Args:
            batch_size: samples per training batch, of every task where tasks have inputs of their own.
            evaluation_batch_size: samples per other batch; twice as many by default, as no gradients are kept.
            drop_last: leave out a last training batch that is not full.
        """
        larger = evaluation_batch_size or 2 * batch_size
        return (
            _loaders(self.train, batch_size, shuffle=True, drop_last=drop_last),
            _loaders(self.validation, larger),
            _loaders(self.test, larger),
        )

    def labels(self) -> dict[str, Tensor] | None:
        """Return target -> labels of all training samples, in order; None if every task has samples of its own.

        This decodes samples that lie in files.
        """
        if isinstance(self.train, Mapping):
            return None
        batches = [targets for _, targets in self.train.loader(4096)]
        return {name: torch.cat([targets[name] for targets in batches]) for name in self.train.targets}

    def only(self, tasks: Sequence[str]) -> TaskData:
        """Return the same data for some of the tasks, in the order of the data set.

        Raises:
            ParameterError: if there is no such task, or none is left.
        """
        check_list(tasks, "tasks")
        known = [task.name for task in self.tasks]
        for name in tasks:
            if name not in known:
                raise ParameterError(f"{self.name}: {unknown_name('task', name, known)}")
        kept = tuple(task for task in self.tasks if task.name in tasks)
        if not kept:
            raise ParameterError(f"{self.name}: at least one task must be kept. Known: {', '.join(known)}.")
        return replace(
            self,
            tasks=kept,
            train=_only(self.train, kept),
            validation=_only(self.validation, kept),
            test=_only(self.test, kept),
        )


def _size(part: Part) -> str:
    """Return the number of samples, of all tasks together where each has its own."""
    return f"{sum(map(len, part.values())) if isinstance(part, Mapping) else len(part):,}"


def _loaders(part: Part, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> Loaders:
    if isinstance(part, Mapping):
        return {task: split.loader(batch_size, shuffle=shuffle, drop_last=drop_last) for task, split in part.items()}
    return part.loader(batch_size, shuffle=shuffle, drop_last=drop_last)


def _only(part: Part, tasks: Sequence[Task]) -> Part:
    if isinstance(part, Mapping):
        return {task.name: part[task.name] for task in tasks}
    return part.only([task.target for task in tasks])
