"""Choice of the classes of small tasks, and of the samples of every class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sparsemtl.errors import DataError, ParameterError, unknown_name

TaskClasses = Mapping[str, Sequence[int]]
"""Task -> indices of its classes."""


def named_classes(tasks: Mapping[str, Sequence[str | int]], names: Sequence[str]) -> dict[str, list[int]]:
    """Return task -> indices of its classes, which are given by name or index."""
    if not tasks:
        raise ParameterError("tasks: expected a number of tasks, or a mapping of tasks to their classes; got none.")
    found = {}
    for task, wanted in tasks.items():
        if isinstance(wanted, str) or not isinstance(wanted, Sequence):
            raise ParameterError(f"tasks: task {task!r}: expected a list of classes, got {wanted!r}.")
        found[task] = [_index(task, one, names) for one in wanted]
        if len(found[task]) < 2 or len(set(found[task])) < len(found[task]):
            raise ParameterError(f"tasks: task {task!r} needs at least 2 classes, each once; got {list(wanted)}.")
    return found


def _index(task: str, wanted: str | int, names: Sequence[str]) -> int:
    if isinstance(wanted, str):
        if wanted not in names:
            raise ParameterError(f"tasks: task {task!r}: {unknown_name('class', wanted, names)}")
        return names.index(wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted < len(names):
        raise ParameterError(f"tasks: task {task!r}: a class's index lies in 0 .. {len(names) - 1}, got {wanted!r}.")
    return wanted


def drawn_classes(count: int, tasks: int, size: int, overlap: int, *, seed: int) -> dict[str, list[int]]:
    """Draw the classes of tasks that have some in common.

    Args:
        count: number of classes to draw from.
        tasks: number of tasks; they are named task1, task2 and so on.
        size: number of classes per task.
        overlap: number of classes that all tasks have in common; no two tasks have another one in common.
        seed: seed of the draw.

    Returns:
        task -> its classes, ascending.
    """
    needed = overlap + tasks * (size - overlap)
    if size < 2 or overlap > size:
        raise ParameterError(
            f"a task needs at least 2 `classes`, and `overlap` is at most all of them; got {size} classes with an "
            f"overlap of {overlap}."
        )
    if needed > count:
        raise ParameterError(
            f"{tasks} tasks of {size} classes, {overlap} of them in common, need {needed} classes; there are {count}. "
            "Take fewer tasks or classes, a larger overlap, or one more source."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    common, own = order[:overlap].tolist(), order[overlap:needed].view(tasks, size - overlap).tolist()
    return {f"task{number}": sorted(common + others) for number, others in enumerate(own, start=1)}


class ClassSampling:
    """Draws of samples per class.

    Args:
        classes: class of every sample, shape (N,).
        names: names of the classes.
        split: name of the split for messages.
        seed: seed of the order within every class.
    """

    def __init__(self, classes: Tensor, names: Sequence[str], split: str, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.classes, self.names, self.split = classes, names, split
        self._orders = []
        for index in range(len(names)):
            rows = (classes == index).nonzero().squeeze(1)
            self._orders.append(rows[torch.randperm(len(rows), generator=generator)])

    def disjoint(self, tasks: TaskClasses, count: int) -> dict[str, Tensor]:
        """Draw `count` samples per class for every task, none for two tasks; fewer samples are among more."""
        users = Counter(index for chosen in tasks.values() for index in chosen)
        turns: Counter[int] = Counter()
        drawn = {}
        for task, chosen in tasks.items():
            pieces = []
            for index in chosen:
                self._check(index, count * users[index], users[index])
                pieces.append(self._orders[index][turns[index] :: users[index]][:count])
                turns[index] += 1
            drawn[task] = torch.cat(pieces).sort().values
        return drawn

    def common(self, tasks: TaskClasses, count: int | None) -> dict[str, Tensor]:
        """Draw `count` samples per class, or all: the same ones for every task that has the class."""
        drawn = {}
        for task, chosen in tasks.items():
            for index in chosen:
                self._check(index, count or 0, 1)
            drawn[task] = torch.cat([self._orders[index][:count] for index in chosen]).sort().values
            if len(drawn[task]) == 0:
                raise DataError(f"task {task!r}: the sources have no {self.split} sample of its classes.")
        return drawn

    def others(self, taken: Iterable[Tensor]) -> Tensor:
        """Return the samples of any class that are not taken."""
        free = self.classes >= 0
        for rows in taken:
            free[rows] = False
        return free.nonzero().squeeze(1)

    def _check(self, index: int, needed: int, tasks: int) -> None:
        available = len(self._orders[index])
        if available < needed:
            among = f" for {tasks} tasks that have it" if tasks > 1 else ""
            raise DataError(
                f"class {self.names[index]!r} has {available} {self.split} samples; {needed} are needed{among}; ask "
                "for fewer."
            )
