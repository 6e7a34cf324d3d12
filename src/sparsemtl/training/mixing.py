"""What an epoch is: how the batches of the tasks' loaders become steps.

With one loader for all tasks an epoch is one pass over it, a step is one batch. With a loader a task, `Mix` says:

- `longest`: a step takes one batch of every task; the epoch ends with the longest loader, shorter ones begin anew.
- `shortest`: a step takes one batch of every task; the epoch ends with the shortest loader.
- `proportional`: a step takes one batch of one task; every batch of every loader comes once, in random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, Literal

import torch

from sparsemtl.batches import Group, Loader, Loaders, as_group
from sparsemtl.errors import LabelError
from sparsemtl.tasks import Task

Mix = Literal["longest", "shortest", "proportional"]


def steps_in_epoch(loaders: Loaders, mix: Mix) -> int | None:
    """Number of batches in an epoch; None if a single loader does not tell its length."""
    if not isinstance(loaders, Mapping):
        return len(loaders) if isinstance(loaders, Sized) else None
    lengths = [_length(task, loader) for task, loader in loaders.items()]
    if mix == "proportional":
        return sum(lengths)
    return max(lengths) if mix == "longest" else min(lengths)


def _length(task: str, loader: Loader) -> int:
    if not isinstance(loader, Sized):
        raise LabelError(f"the loader of task {task!r} has no length, which mixing loaders needs.")
    length = len(loader)
    if length == 0:
        raise LabelError(f"the loader of task {task!r} is empty.")
    return length


def epoch_batches(loaders: Loaders, tasks: Mapping[str, Task], mix: Mix) -> Iterator[list[Group]]:
    """The batches of one epoch, each a list of groups."""
    if not isinstance(loaders, Mapping):
        for batch in loaders:
            yield [as_group(batch, tasks)]
    elif mix == "proportional":
        yield from _proportional(loaders, tasks)
    else:
        streams = {task: _endless(loaders[task]) for task in tasks}
        for _ in range(steps_in_epoch(loaders, mix) or 0):
            yield [as_group(next(stream), tasks, owner=task) for task, stream in streams.items()]


def _endless(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader


def _proportional(loaders: Mapping[str, Loader], tasks: Mapping[str, Task]) -> Iterator[list[Group]]:
    owners = [task for task in tasks for _ in range(_length(task, loaders[task]))]
    streams = {task: _endless(loaders[task]) for task in tasks}
    for position in torch.randperm(len(owners)).tolist():
        task = owners[position]
        yield [as_group(next(streams[task]), tasks, owner=task)]


def loader_generators(loaders: Loaders) -> list[torch.Generator]:
    """The random generators that loaders draw their order from, where they have their own."""
    found: list[torch.Generator] = []
    for loader in loaders.values() if isinstance(loaders, Mapping) else [loaders]:
        for holder in (loader, getattr(loader, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
                found.append(generator)
    return found
