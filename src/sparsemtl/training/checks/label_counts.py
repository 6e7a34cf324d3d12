"""Labels of a loader, counted: how many are known, and how many each class has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsemtl.errors import LabelError
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.tasks.batches import Group, Loaders, as_group, by_owner, preserve_loader_state
from sparsemtl.tasks.task import Task


@dataclass
class LabelCounts:
    """Labels of a task in the batches that were read.

    Attributes:
        samples: number of samples.
        labels: number of labels, one per sample, position or value.
        known: number of known labels.
        classes: class -> number of its labels; empty for a task without classes.
        whole: every batch of the loader was read.
    """

    samples: int = 0
    labels: int = 0
    known: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    whole: bool = False

    @property
    def absent(self) -> list[str]:
        """Classes without a label, if so many labels were read that each class is expected among them."""
        expected = self.whole or self.known >= _EXPECTED * len(self.classes)
        return [name for name, count in self.classes.items() if not count] if expected and self.known else []


_EXPECTED = 20
"""Known labels per class from which an absent class is named."""


@dataclass(frozen=True)
class Reading:
    """Result of reading a part of a loader, or of one loader per task.

    Attributes:
        counts: task -> its labels.
        seconds: mean time to load a batch.
    """

    counts: Mapping[str, LabelCounts]
    seconds: float


def count_labels(loaders: Loaders, tasks: Mapping[str, Task], *, limit: float) -> Reading:
    """Count the labels of as many batches as can be read in some seconds, of at least one batch.

    The order of the loaders and the random generators are preserved.

    Args:
        loaders: one loader for all tasks, or one per task.
        tasks: tasks by name.
        limit: seconds in all.

    Raises:
        LabelError: naming the batch whose labels do not fit a task.
    """
    counts = {name: LabelCounts() for name in tasks}
    parts = by_owner(loaders)
    batches, began = 0, time.perf_counter()
    with fork_rng(), preserve_loader_state(loaders):
        for number, (owner, loader) in enumerate(parts.items(), start=1):
            until, complete = began + limit * number / len(parts), True
            for batch in loader:
                batches += 1
                _add(counts, tasks, as_group(batch, tasks, owner), batches)
                complete = False
                if time.perf_counter() > until:
                    break
                complete = True
            for name in tasks if owner is None else (owner,):
                counts[name].whole = complete
    return Reading(counts, (time.perf_counter() - began) / max(batches, 1))


def _add(counts: Mapping[str, LabelCounts], tasks: Mapping[str, Task], group: Group, number: int) -> None:
    for name in group.tasks:
        try:
            label = tasks[name].labels(group.targets)
        except LabelError as error:
            raise LabelError(f"batch {number}: {error}") from None
        known = tasks[name].known(label)
        own = counts[name]
        own.samples += len(label)
        own.labels += known.numel()
        own.known += int(known.sum())
        for one, count in tasks[name].class_counts(label).items():
            own.classes[one] = own.classes.get(one, 0) + count
