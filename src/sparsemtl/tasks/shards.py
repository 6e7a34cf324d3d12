"""Shards: the part of the batches that one of several processes computes on.

Batches come in rounds, one per process, in the order of the loader. A round of W processes is the batch of one process
with W times the batch size. A process for which a round has no batch takes part with `NO_BATCH`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from sparsemtl.tasks.batches import Group, Loader, Loaders, by_owner
from sparsemtl.tasks.nests import map_tensors
from sparsemtl.tasks.processes import ALONE, Processes

NO_BATCH = Group(None, {}, ())
"""Group without tasks, for a process that a round has no batch for."""


_Part = Callable[[Iterator[Any], Processes], Iterator[Any]]
"""Function from the batches of a loader to the rounds of one process."""


class _ShardedLoader:
    """Loader of which each of several processes computes on a part; whoever iterates over it reads all its batches.

    Args:
        loader: of all data, the same and in the same order in all processes, or of this process's data.
        processes: the processes.
        part: this process's batches of every round: `_in_turn` of all data, `_own` of its own.
    """

    def __init__(self, loader: Loader, processes: Processes, part: _Part) -> None:
        self.loader = loader
        self.processes = processes
        self._part = part

    def __iter__(self) -> Iterator[Any]:
        """Return a pass over all batches."""
        return iter(self.loader)

    def __len__(self) -> int:
        """Return the number of batches, if the loader has one."""
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader, such as its sampler or generator."""
        if name in ("loader", "processes", "_part"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def rounds(self) -> Iterator[Any]:
        """Yield this process's batch of every round, or `NO_BATCH`."""
        return self._part(iter(self.loader), self.processes)


def _in_turn(batches: Iterator[Any], processes: Processes) -> Iterator[Any]:
    """Yield the batches of a process, if the first process takes the first batch, the next one the second."""
    while found := list(islice(_copied(batches, processes.rank), processes.count)):
        yield found[processes.rank] if processes.rank < len(found) else NO_BATCH


def _own(batches: Iterator[Any], processes: Processes) -> Iterator[Any]:
    """Yield all batches of a process, then `NO_BATCH` until all processes have none left."""
    while True:
        batch = next(batches, NO_BATCH)
        if not processes.numbers([batch is not NO_BATCH]).any():
            return
        yield batch


class _Rounds:
    """Iterable over the rounds of a loader."""

    def __init__(self, loader: _ShardedLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return self._loader.rounds()

    def __len__(self) -> int:
        return -(-len(self._loader.loader) // self._loader.processes.count)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


def shared(loaders: Loaders, processes: Processes) -> Loaders:
    """Return loaders of all data for several processes; for one process, the loaders as they are."""
    return _each(loaders, lambda loader: _ShardedLoader(loader, processes, _in_turn)) if processes.several else loaders


def owned(loaders: Loaders, group: Any) -> Loaders:
    """Return loaders of a process's own data, which criteria reduce over the processes of a group; None is no group."""
    if group is None:
        return loaders
    return _each(loaders, lambda loader: _ShardedLoader(loader, Processes(group), _own))


def sharded(loaders: Loaders) -> Loaders:
    """Return loaders of the rounds of this process: as many in all processes. Loaders of one process stay."""
    return _each(loaders, lambda loader: _Rounds(loader) if isinstance(loader, _ShardedLoader) else loader)


def processes_of(loaders: Loaders) -> Processes:
    """Return the processes that have parts of the data."""
    loader = next(iter(by_owner(loaders).values()), None)
    return loader.processes if isinstance(loader, _ShardedLoader) else ALONE


def _each(loaders: Loaders, change: Callable[[Loader], Loader]) -> Loaders:
    if isinstance(loaders, Mapping):
        return {task: change(loader) for task, loader in loaders.items()}
    return change(loaders)


def _copied(batches: Iterable[Any], position: int) -> Iterator[Any]:
    """Copy the batch at a position, since a loader may use its memory again for the next one."""
    for number, batch in enumerate(batches):
        yield map_tensors(torch.clone, batch) if number == position else batch
