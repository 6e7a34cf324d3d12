"""Batches of loaders in one form, for training, criteria and evaluation.

A loader yields `(x, {target: labels})`, one input for all tasks. Where every task has its own data, there is a dict of
loaders, task -> loader of `(x, labels)`. In both cases a training step reads groups; a group is one input with the
tasks that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsemtl.errors import LabelError, unknown_name
from sparsemtl.tasks.nests import to_device, to_dtype

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Loader = Iterable[Any]
"""Iterable of (x, {target: labels}), or of (x, labels) for the loader of one task."""
Loaders = Loader | Mapping[str, Loader]
"""One loader for all tasks, or one per task."""


@dataclass(frozen=True)
class Group:
    """One input and the tasks that read it.

    Attributes:
        x: input of the encoder: a tensor, any nest of tensors, or an object with a method `to(device)`.
        targets: target -> labels.
        tasks: names of the tasks.
    """

    x: Any
    targets: Mapping[str, Tensor]
    tasks: tuple[str, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Group:
        """Return the group on another device, with floating-point inputs in a dtype. Labels keep their dtype."""
        x = self.x if dtype is None else to_dtype(self.x, dtype)
        return Group(to_device(x, device), to_device(dict(self.targets), device), self.tasks)


def per_task(loaders: Loaders) -> bool:
    """Return whether every task has a loader of its own."""
    return isinstance(loaders, Mapping)


def by_owner(loaders: Loaders) -> dict[str | None, Loader]:
    """Return owner -> loader; the owner is a task, or None for one loader of all tasks."""
    return dict(loaders.items()) if isinstance(loaders, Mapping) else {None: loaders}


def owner_of(loaders: Loaders, task: str) -> str | None:
    """Return the owner of the loader that has the labels of a task: the task, or None for one loader of all tasks."""
    return task if per_task(loaders) else None


def check_loaders(loaders: Loaders, tasks: Mapping[str, Task], kind: str = "loader") -> None:
    """Raise a LabelError if a loader is empty or cannot be read, or the keys of a dict of loaders are not the tasks.

    Args:
        loaders: the loaders.
        tasks: tasks of the model by name.
        kind: name of the loaders in messages.
    """
    if isinstance(loaders, Mapping):
        for name in loaders:
            if name not in tasks:
                raise LabelError(f"loaders: {unknown_name('task', name, tasks)}")
        missing = [name for name in tasks if name not in loaders]
        if missing:
            raise LabelError(f"loaders: task {missing[0]!r} has no loader; found {sorted(loaders)}.")
    check_readable(loaders)
    for owner, loader in by_owner(loaders).items():
        if number_of_batches(loader) == 0:
            raise LabelError(EMPTY.format(whose=kind if owner is None else f"{kind} of task {owner!r}"))


def check_readable(loaders: Loaders) -> None:
    """Raise a LabelError if a loader cannot be iterated over."""
    for owner, loader in by_owner(loaders).items():
        if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
            what = "a loader" if owner is None else f"the loader of task {owner!r}"
            raise LabelError(f"{what} yields batches, as a DataLoader or a list of them does, got {loader!r}.")


def number_of_batches(loader: Loader) -> int | None:
    """Return the number of batches of an epoch; None if the loader does not know it."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # torch's DataLoader has `__len__`, and raises in it where its data set has none
        return None


def as_group(batch: Any, tasks: Mapping[str, Task], owner: str | None = None) -> Group:
    """Return a batch of a loader as a group.

    Args:
        batch: (x, {target: labels}), or (x, labels) from the loader of the task `owner`; a group stays.
        tasks: tasks of the model by name.
        owner: name of the task whose loader yielded the batch, None for a loader of all tasks.

    Raises:
        LabelError: if the batch has another structure.
    """
    if isinstance(batch, Group):
        return batch
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


EMPTY = (
    "the {whose} gave no batch. Pass a loader that every epoch can read anew, not an iterator; with `drop_last`, the "
    "data need at least one full batch."
)
"""Message of an error, with the place for the loader's name."""


def first_batch(loader: Loader, owner: str | None = None) -> Any:
    """Return the first batch of a loader.

    Raises:
        LabelError: if the loader is empty.
    """
    for batch in loader:
        return batch
    raise LabelError(EMPTY.format(whose="training loader" if owner is None else f"loader of task {owner!r}"))


def first_groups(loaders: Loaders, tasks: Mapping[str, Task]) -> Iterator[Group]:
    """Yield the first batch of the loader of all tasks, or that of every task's loader, as groups.

    Raises:
        LabelError: if a loader is empty.
    """
    for owner in tasks if per_task(loaders) else (None,):
        yield as_group(first_batch(by_owner(loaders)[owner], owner), tasks, owner)


def groups_for(loaders: Loaders, task: Task) -> Iterator[Group]:
    """Yield all batches with labels of a task, as groups of this task alone."""
    owner = owner_of(loaders, task.name)
    for batch in by_owner(loaders)[owner]:
        group = as_group(batch, {task.name: task}, owner)
        yield Group(group.x, group.targets, (task.name,)) if group.tasks else group


def evaluation_groups(loaders: Loaders, tasks: Mapping[str, Task]) -> Iterator[Group]:
    """Yield all batches of all tasks as groups, inputs that tasks share once."""
    if per_task(loaders):
        for task in tasks.values():
            yield from groups_for(loaders, task)
    else:
        for batch in loaders:
            yield as_group(batch, tasks)


def loader_generators(loaders: Loaders) -> list[torch.Generator]:
    """Return the generators of the loaders that draw their order from a generator of their own."""
    found: list[torch.Generator] = []
    for loader in by_owner(loaders).values():
        batch_sampler = getattr(loader, "batch_sampler", None)
        inner = getattr(batch_sampler, "sampler", None)
        for holder in (loader, getattr(loader, "sampler", None), batch_sampler, inner):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is other for other in found):
                found.append(generator)
    return found


@contextmanager
def preserve_loader_state(loaders: Loaders) -> Iterator[None]:
    """Restore the loaders' own generators at the end of the context."""
    states = [(generator, generator.get_state()) for generator in loader_generators(loaders)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
