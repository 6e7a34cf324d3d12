"""Samples that are decoded when a batch asks for them: data sets that memory does not hold.

A `Source` decodes one sample; `LazySplit` is some of its samples with the same seam as `Split`, and gives them to
workers. These are threads: to read and to decode a file leaves Python to the others meanwhile, while a process would
have to start, with torch, in every pass. Nothing in here is random but the order of a pass, which is drawn from torch's
global generator just as `TensorLoader` draws it: the same seed gives the same batches wherever the samples lie, with
any number of workers, and a resumed run goes on bit for bit.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsemtl.data.base import BatchLoader, Split, gather
from sparsemtl.errors import DataError, LabelWarning
from sparsemtl.registry.parameters import Count, validated

T = TypeVar("T")
R = TypeVar("R")

GIGABYTE = 1e9
MOST_WORKERS = 4
"""Threads that decode for a loader, where nobody says how many."""
AHEAD = 2
"""Batches a thread that are decoded before they are asked for."""


class Sample(NamedTuple):
    """One decoded sample.

    Attributes:
        x: the input; bytes stand for 0 .. 1.
        targets: target -> label.
        remarks: kind -> what a person should know of it; every kind is told once.
    """

    x: Tensor
    targets: dict[str, Tensor]
    remarks: dict[str, str]


class Source(Protocol):
    """Where samples are decoded. Threads share it, so to decode changes nothing in it, and it keeps no file open."""

    @property
    def targets(self) -> Sequence[str]:
        """The targets that it has labels of."""

    def __len__(self) -> int:
        """Number of samples."""

    def where(self, row: int) -> str:
        """What to call a sample in messages: its file."""

    def sample(self, row: int, targets: Sequence[str]) -> Sample:
        """Decode a sample with the labels of these targets.

        Raises:
            DataError: naming the file, if one is absent, damaged or does not fit.
        """


@dataclass(frozen=True, eq=False)
class LazySplit:
    """Samples of a source, decoded batch by batch.

    Attributes:
        source: decodes them.
        rows: which of the source's samples, shape (N,).
        targets: the targets that batches have.
        workers: threads that decode; 0 decodes in the one that asks; by default one a processor, at most four.
        memory: gigabytes in which decoded samples may be kept, images as bytes. Samples that fit are decoded once.
    """

    source: Source
    rows: Tensor
    targets: tuple[str, ...]
    workers: int | None = None
    memory: float = 0.0
    _told: set[str] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def of(cls, source: Source, *, workers: int | None, memory: float) -> LazySplit:
        """All samples of a source."""
        return cls(source, torch.arange(len(source)), tuple(source.targets), workers, memory)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, that of the first sample."""
        return tuple(self._first.x.shape)

    @cached_property
    def kept(self) -> Kept | None:
        """Decoded samples, if they fit into the memory that is granted."""
        sample = sum(leaf.nbytes for leaf in tree_leaves(self._first) if isinstance(leaf, Tensor))
        return Kept(len(self)) if sample * len(self) <= self.memory * GIGABYTE else None

    @cached_property
    def _first(self) -> Sample:
        if len(self) == 0:
            raise DataError("there is no sample to decode.")
        return self.source.sample(int(self.rows[0]), self.targets)

    def loader(self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> LazyLoader:
        """Make a loader of these samples."""
        return LazyLoader(self, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)

    def take(self, count: int) -> LazySplit:
        """The first `count` samples, or all if there are fewer."""
        return self.select(torch.arange(min(count, len(self))))

    def select(self, rows: Tensor) -> LazySplit:
        """The samples at these indices, in their order."""
        return LazySplit(self.source, self.rows[rows], self.targets, self.workers, self.memory)

    def only(self, targets: Sequence[str]) -> LazySplit:
        """The same samples with these targets' labels alone; other files are not read."""
        return LazySplit(self.source, self.rows, tuple(dict.fromkeys(targets)), self.workers, self.memory)

    def load(self) -> Split:
        """Decode all samples at once."""
        ((x, targets),) = self.loader(len(self))
        return Split(x, targets)

    def decode(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
        """One batch: inputs, target -> labels, and the remarks of its samples, see `Sample`.

        Args:
            rows: indices of its samples.

        Raises:
            DataError: if a sample cannot be decoded, or images differ in size.
        """
        numbers = self.rows[rows].tolist()
        samples = [self.source.sample(number, self.targets) for number in numbers]
        for number, sample in zip(numbers, samples, strict=True):
            if sample.x.shape != samples[0].x.shape:
                first, other = self.source.where(numbers[0]), self.source.where(number)
                raise DataError(
                    f"images of a batch must have one size: {first} has {_size(samples[0].x)} pixels, "
                    f"{other} {_size(sample.x)}. Set `size` to a height and a width."
                )
        targets = {name: torch.stack([sample.targets[name] for sample in samples]) for name in self.targets}
        remarks = {kind: text for sample in reversed(samples) for kind, text in sample.remarks.items()}
        return torch.stack([sample.x for sample in samples]), targets, remarks

    def tell(self, remarks: dict[str, str]) -> None:
        """Warn of what nobody was told yet."""
        for kind, remark in remarks.items():
            if kind not in self._told:
                self._told.add(kind)
                warnings.warn(f"{remark} More of the kind are not told.", LabelWarning, stacklevel=2)


class LazyLoader(BatchLoader):
    """Batches of samples that are decoded meanwhile.

    Args:
        split: the samples.
        batch_size, shuffle, drop_last, generator: see `BatchLoader`.

    Yields:
        pairs (inputs, target -> labels); inputs are floats.

    Raises:
        DataError: if there is no batch to yield; while it is read, if a sample cannot be decoded.
    """

    @validated
    def __init__(
        self,
        split: LazySplit,
        *,
        batch_size: Count = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(len(split), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator)
        self.split = split

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        return self._pass(self.order())

    def _pass(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        kept = self.split.kept
        whole = kept is not None and kept.has(torch.cat(list(order)))
        for x, targets in map(kept.get, order) if kept and whole else self._decoded(order):
            yield as_floats(x), targets

    def _decoded(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        kept = self.split.kept
        batches = _ahead(self.split.decode, order, decoding_threads(self.split.workers))
        for rows, (x, targets, remarks) in zip(order, batches, strict=True):
            self.split.tell(remarks)
            if kept is not None:
                kept.put(rows, (x, targets))
            yield x, targets


class Kept:
    """Decoded samples, kept as they come.

    Args:
        count: number of samples.
    """

    def __init__(self, count: int) -> None:
        self._there = torch.zeros(count, dtype=torch.bool)
        self._held: Any = None

    def has(self, rows: Tensor) -> bool:
        """Tell whether all these samples came."""
        return bool(self._there[rows].all())

    def put(self, rows: Tensor, batch: Any) -> None:
        """Keep a batch, any nest of tensors."""
        if self._held is None:
            self._held = tree_map_only(Tensor, lambda part: part.new_empty(len(self._there), *part.shape[1:]), batch)
        for held, part in zip(tree_leaves(self._held), tree_leaves(batch), strict=True):
            held[rows] = part
        self._there[rows] = True

    def get(self, rows: Tensor) -> Any:
        """A copy of these samples."""
        return gather(self._held, rows)


def as_floats(x: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def _ahead(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """What `work` makes of the items, in their order; threads make the next ones meanwhile."""
    if threads == 0:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, "decoding")
    try:
        rest = iter(items)
        coming = deque(pool.submit(work, item) for item in islice(rest, AHEAD * threads))
        while coming:
            value = coming.popleft().result()
            coming.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield value
    finally:
        pool.shutdown(cancel_futures=True)


def decoding_threads(workers: int | None) -> int:
    """Return the number of threads that decode: `workers`, or one a processor, at most `MOST_WORKERS`."""
    if workers is not None:
        return workers
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-2:]))
