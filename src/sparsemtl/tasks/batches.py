"""What comes out of a loader, in one shape for training, criteria and evaluation.

A loader yields `(x, {target: labels})`: one input for all tasks. Or there is a dict of loaders, task -> loader of
`(x, labels)`: every task has its own data. Either way a step works on a list of groups; a group is one input with
the tasks that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsemtl.errors import LabelError, unknown_name
from sparsemtl.tasks.nests import to_device, to_dtype
from sparsemtl.tasks.task import Task

Loader = Iterable[Any]
"""Yields (x, {target: labels}), or (x, labels) where it is one task's own."""
Loaders = Loader | Mapping[str, Loader]
"""One loader for all tasks, or one a task."""


@dataclass(frozen=True)
class Group:
    """One input and the tasks that read it.

    Attributes:
        x: the encoder's input, a tensor, any nest of tensors, or an object with a `to(device)` of its own.
        targets: target -> labels.
        tasks: names of the tasks.
    """

    x: Any
    targets: Mapping[str, Tensor]
    tasks: tuple[str, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Group:
        """Return the same group on another device, floating-point inputs in a dtype; labels keep theirs."""
        x = self.x if dtype is None else to_dtype(self.x, dtype)
        return Group(to_device(x, device), to_device(dict(self.targets), device), self.tasks)


def per_task(loaders: Loaders) -> bool:
    """Tell whether every task has a loader of its own."""
    return isinstance(loaders, Mapping)


def check_loaders(loaders: Loaders, tasks: Mapping[str, Task]) -> None:
    """Raise if a loader cannot be read, or a dict of loaders lacks a task or names one that does not exist."""
    if isinstance(loaders, Mapping):
        for name in loaders:
            if name not in tasks:
                raise LabelError(f"loaders: {unknown_name('task', name, tasks)}")
        missing = [name for name in tasks if name not in loaders]
        if missing:
            raise LabelError(f"loaders: task {missing[0]!r} has no loader; found {sorted(loaders)}.")
    check_readable(loaders)


def check_readable(loaders: Loaders) -> None:
    """Raise if something that is no loader stands in the place of one."""
    for name, loader in loaders.items() if isinstance(loaders, Mapping) else [(None, loaders)]:
        if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
            what = "a loader" if name is None else f"the loader of task {name!r}"
            raise LabelError(f"{what} yields batches, as a DataLoader or a list of them does, got {loader!r}.")


def as_group(batch: Any, tasks: Mapping[str, Task], owner: str | None = None) -> Group:
    """Read one batch of a loader.

    Args:
        batch: (x, {target: labels}); or (x, labels) if it comes from the loader of the task `owner`.
        tasks: the model's tasks.
        owner: the task whose own loader gave the batch.

    Raises:
        LabelError: if the batch has another form.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise LabelError(
            f"a loader yields pairs (x, {{task: labels}}), got {type(batch).__name__}"
            + (f" of {len(batch)} items." if isinstance(batch, (tuple, list)) else ".")
        )
    x, targets = batch
    if isinstance(targets, Tensor):
        if owner is None:
            if len(tasks) > 1:
                raise LabelError(f"a loader for {len(tasks)} tasks yields (x, {{task: labels}}), got bare labels.")
            owner = next(iter(tasks))
        targets = {tasks[owner].target: targets}
    if not isinstance(targets, Mapping):
        raise LabelError(f"a loader yields pairs (x, {{task: labels}}), got (x, {type(targets).__name__}).")
    return Group(x, targets, tuple(tasks) if owner is None else (owner,))


EMPTY = "the {whose} gave no batch. Every epoch reads it anew: an iterator is no loader; does `drop_last` leave any?"


def first_batch(loader: Loader, owner: str | None = None) -> Any:
    """The first batch of a loader.

    Raises:
        LabelError: if there is none.
    """
    for batch in loader:
        return batch
    raise LabelError(EMPTY.format(whose="training loader" if owner is None else f"loader of task {owner!r}"))


def groups_for(loaders: Loaders, task: Task) -> Iterator[Group]:
    """One pass over the data of a task."""
    loader = loaders[task.name] if isinstance(loaders, Mapping) else loaders
    for batch in loader:
        group = as_group(batch, {task.name: task}, owner=task.name if isinstance(loaders, Mapping) else None)
        yield Group(group.x, group.targets, (task.name,))


def evaluation_groups(loaders: Loaders, tasks: Mapping[str, Task]) -> Iterator[Group]:
    """One pass over all data of all tasks, shared inputs once."""
    if isinstance(loaders, Mapping):
        for name in tasks:
            yield from groups_for(loaders, tasks[name])
    else:
        for batch in loaders:
            yield as_group(batch, tasks)


def loader_generators(loaders: Loaders) -> list[torch.Generator]:
    """The random generators that loaders draw their order from, where they have their own."""
    found: list[torch.Generator] = []
    for loader in loaders.values() if isinstance(loaders, Mapping) else [loaders]:
        batch_sampler = getattr(loader, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        for holder in (loader, getattr(loader, "sampler", None), batch_sampler, inner):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
                found.append(generator)
    return found


@contextmanager
def preserve_loader_state(loaders: Loaders) -> Iterator[None]:
    """Whatever is read from the loaders inside, their own generators go on afterwards as if nothing had been."""
    states = [(generator, generator.get_state()) for generator in loader_generators(loaders)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
