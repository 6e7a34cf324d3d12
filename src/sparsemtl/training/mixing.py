"""Epochs: the batches of the tasks' loaders, put together to steps.

With one loader for all tasks, an epoch is one pass over it and a step is one batch. With one loader per task, `Mix` is:

- `longest`: a step takes one batch of every task; the epoch ends with the longest loader, shorter ones begin anew.
- `shortest`: a step takes one batch of every task; the epoch ends with the shortest loader.
- `proportional`: a step takes one batch of one task; every batch of every loader comes once, in random order.

The random order of an epoch is drawn, or seeded, when the epoch begins. So it does not depend on what training draws
meanwhile, and a resumed run repeats it without training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any, Literal

import torch

from sparsemtl.errors import LabelError
from sparsemtl.networks.randomness import fork_rng, seed_everything
from sparsemtl.tasks.batches import EMPTY, Group, Loader, Loaders, as_group, number_of_batches
from sparsemtl.tasks.task import Task
from sparsemtl.training.checkpoints.checkpoint import Stateful

Mix = Literal["longest", "shortest", "proportional"]


def steps_in_epoch(loaders: Loaders, mix: Mix) -> int | None:
    """Return the number of batches in an epoch; None if a loader has no length."""
    if not isinstance(loaders, Mapping):
        return number_of_batches(loaders)
    lengths = [_length(task, loader) for task, loader in loaders.items()]
    if mix == "proportional":
        return sum(lengths)
    return max(lengths) if mix == "longest" else min(lengths)


def _length(task: str, loader: Loader) -> int:
    length = number_of_batches(loader)
    if length is None:
        raise LabelError(f"the loader of task {task!r} has no length, which mixing loaders needs.")
    if length == 0:
        raise LabelError(f"the loader of task {task!r} is empty.")
    return length


def epoch_batches(loaders: Loaders, tasks: Mapping[str, Task], mix: Mix) -> Iterator[list[Group]]:
    """Yield the batches of one epoch, each a list of groups.

    Raises:
        LabelError: if there is none.
    """
    if not isinstance(loaders, Mapping):
        empty = True
        for batch in loaders:
            empty = False
            yield [as_group(batch, tasks)]
        if empty:
            raise LabelError(EMPTY.format(whose="training loader"))
    elif mix == "proportional":
        yield from _proportional(loaders, tasks)
    else:
        streams = _streams(loaders, tasks)
        for _ in range(steps_in_epoch(loaders, mix) or 0):
            yield [as_group(next(stream), tasks, owner=task) for task, stream in streams.items()]


def _endless(task: str, loader: Loader, seed: int) -> Iterator[Any]:
    """Yield batches of pass after pass, each in an order drawn from its own seed."""
    for number in count():
        with fork_rng():
            seed_everything(seed + number)
            batches = iter(loader)
            first = next(batches, None)
            if first is None:
                raise LabelError(EMPTY.format(whose=f"loader of task {task!r}"))
        yield first
        yield from batches


def _streams(loaders: Mapping[str, Loader], tasks: Mapping[str, Task]) -> dict[str, Iterator[Any]]:
    seeds = torch.randint(2**31, (len(tasks),)).tolist()
    return {task: _endless(task, loaders[task], seed) for task, seed in zip(tasks, seeds, strict=True)}


def _proportional(loaders: Mapping[str, Loader], tasks: Mapping[str, Task]) -> Iterator[list[Group]]:
    owners = [task for task in tasks for _ in range(_length(task, loaders[task]))]
    streams = _streams(loaders, tasks)
    for position in torch.randperm(len(owners)).tolist():
        task = owners[position]
        yield [as_group(next(streams[task]), tasks, owner=task)]


def remaining_batches(
    loaders: Loaders, tasks: Mapping[str, Task], mix: Mix, done: int, randomness: Stateful, start: Mapping[str, Any]
) -> Iterator[list[Group]]:
    """Yield the remaining batches of an epoch, in the order that was drawn at its beginning.

    Args:
        loaders: the training data.
        tasks: the model's tasks.
        mix: how loaders of single tasks make an epoch.
        done: batches of the epoch that were trained on before the run stopped.
        randomness: the random generators.
        start: their state at the beginning of the epoch; not needed if nothing is done.
    """
    if not done:
        yield from epoch_batches(loaders, tasks, mix)
        return
    now = randomness.state_dict()
    randomness.load_state_dict(start)
    batches = epoch_batches(loaders, tasks, mix)
    for _ in islice(batches, done):
        pass
    randomness.load_state_dict(now)
    yield from batches
