"""Samples that are decoded when a batch needs them: data sets larger than memory.

A `SampleSource` decodes one sample; a `LazySplit` is some of its samples with the interface of `Split`. It decodes in
threads: reading and decoding a file leaves Python to the others meanwhile, while a process would have to start, with
torch, in every pass. Only the order of a pass is random, drawn from torch's global generator just as in `TensorLoader`:
the same seed gives the same batches wherever the samples lie, with any number of workers, and a resumed run continues
bit for bit.
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
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import Doc

from sparsemtl.data.base import BatchLoader, Split, gather, shown
from sparsemtl.errors import DataError, LabelWarning
from sparsemtl.registry.parameters import Count, Natural, NonNegative, validated

T = TypeVar("T")
R = TypeVar("R")

_GIGABYTE = 1e9
_MOST_WORKERS = 4
"""Default bound of the number of threads that decode for a loader."""
AHEAD = 2
"""Number of batches per thread that are decoded ahead."""
Workers = Annotated[
    Natural | None,
    Doc("Threads that decode; 0 decodes in the training thread; by default one per processor, at most 4."),
]
Memory = Annotated[NonNegative, Doc("Gigabytes that a split may take in memory; a split that fits is decoded once.")]


class DecodedSample(NamedTuple):
    """One decoded sample."""

    x: Tensor  # bytes stand for 0 .. 1
    targets: dict[str, Tensor]  # target -> label
    remarks: dict[str, str]  # kind -> text for the user; one warning is given per kind


class SampleSource(Protocol):
    """Decoder of samples. Threads share it: decoding changes nothing in it, and it keeps no file open."""

    @property
    def targets(self) -> Sequence[str]:
        """Names of the targets that have labels."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def where(self, row: int) -> str:
        """Return the file of a sample, for messages."""

    def sample(self, row: int, targets: Sequence[str]) -> DecodedSample:
        """Decode a sample with the labels of these targets.

        Raises:
            DataError: naming the file, if one is absent, damaged or does not fit.
        """


@runtime_checkable
class BatchSource(SampleSource, Protocol):
    """Decoder that is faster with several samples at once."""

    def samples(self, rows: Sequence[int], targets: Sequence[str]) -> Sequence[DecodedSample]:
        """Return what `sample` returns for each of these rows."""


@dataclass(frozen=True, eq=False)
class LazySplit:
    """Samples of a source, decoded batch by batch.

    Attributes:
        source: decoder.
        rows: indices of the samples in the source, shape (N,).
        targets: targets of the batches.
        workers: threads that decode, see `Workers`.
        memory: gigabytes for decoded samples, images as bytes. Samples that fit are decoded once.
    """

    source: SampleSource
    rows: Tensor
    targets: tuple[str, ...]
    workers: int | None = None
    memory: float = 0.0
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def of(cls, source: SampleSource, *, workers: int | None, memory: float) -> LazySplit:
        """Return all samples of a source."""
        return cls(source, torch.arange(len(source)), tuple(source.targets), workers, memory)

    def __repr__(self) -> str:
        return shown(self)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, that of the first sample."""
        return tuple(self._first.x.shape)

    @cached_property
    def cache(self) -> SampleCache | None:
        """Decoded samples, if they fit into the memory that is granted."""
        sample = sum(leaf.nbytes for leaf in tree_leaves(self._first) if isinstance(leaf, Tensor))
        return SampleCache(len(self)) if sample * len(self) <= self.memory * _GIGABYTE else None

    @cached_property
    def _first(self) -> DecodedSample:
        if len(self) == 0:
            raise DataError("there is no sample to decode.")
        return self.source.sample(int(self.rows[0]), self.targets)

    def loader(self, batch_size: int, *, shuffle: bool = False, drop_last: bool = False) -> LazyLoader:
        """Return a loader of the samples."""
        return LazyLoader(self, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)

    def select(self, rows: Tensor) -> LazySplit:
        """Return the samples at these indices, in their order."""
        return LazySplit(self.source, self.rows[rows], self.targets, self.workers, self.memory)

    def only(self, targets: Sequence[str]) -> LazySplit:
        """Return the same samples with the labels of these targets; other files are not read."""
        return LazySplit(self.source, self.rows, tuple(dict.fromkeys(targets)), self.workers, self.memory)

    def load(self) -> Split:
        """Decode all samples at once."""
        ((x, targets),) = self.loader(len(self))
        return Split(x, targets)

    def decode(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
        """Return the inputs, target -> labels and remarks of one batch; `rows` are its indices in the split.

        Raises:
            DataError: if a sample cannot be decoded, or images differ in size.
        """
        numbers = self.rows[rows].tolist()
        if isinstance(self.source, BatchSource):
            samples = self.source.samples(numbers, self.targets)
        else:
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

    def warn_once(self, remarks: dict[str, str]) -> None:
        """Warn of every kind of remark that had no warning yet."""
        for kind, remark in remarks.items():
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(f"{remark} Further warnings of the kind are left out.", LabelWarning, stacklevel=2)


class LazyLoader(BatchLoader):
    """Batches of samples that threads decode ahead; inputs are floats.

    Args:
        split: samples.
        batch_size, shuffle, drop_last, generator: see `BatchLoader`.

    Raises:
        DataError: if there is no batch to yield; in a pass, if a sample cannot be decoded.
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
        cache = self.split.cache
        whole = cache is not None and cache.has(torch.cat(list(order)))
        for x, targets in map(cache.get, order) if cache and whole else self._decoded(order):
            yield _as_floats(x), targets

    def _decoded(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        cache = self.split.cache
        batches = _ahead(self.split.decode, order, decoding_threads(self.split.workers))
        for rows, (x, targets, remarks) in zip(order, batches, strict=True):
            self.split.warn_once(remarks)
            if cache is not None:
                cache.put(rows, (x, targets))
            yield x, targets


class SampleCache:
    """Decoded samples in memory, filled batch by batch; `count` is their number."""

    def __init__(self, count: int) -> None:
        self._present = torch.zeros(count, dtype=torch.bool)
        self._stored: Any = None

    def has(self, rows: Tensor) -> bool:
        """Return whether all these samples are present."""
        return bool(self._present[rows].all())

    def put(self, rows: Tensor, batch: Any) -> None:
        """Store a batch, any nest of tensors."""
        if self._stored is None:
            self._stored = tree_map_only(Tensor, lambda t: t.new_empty(len(self._present), *t.shape[1:]), batch)
        for stored, part in zip(tree_leaves(self._stored), tree_leaves(batch), strict=True):
            stored[rows] = part
        self._present[rows] = True

    def get(self, rows: Tensor) -> Any:
        """Return a copy of these samples."""
        return gather(self._stored, rows)


def _as_floats(x: Tensor) -> Tensor:
    """Convert bytes to floats in [0, 1]; floats stay as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def _ahead(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Yield `work` of the items, in their order; threads compute the next ones meanwhile."""
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
    """Return the number of threads that decode: `workers`, or one per processor, at most `_MOST_WORKERS`."""
    if workers is not None:
        return workers
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-2:]))
