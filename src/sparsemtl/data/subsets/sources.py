"""The data sets that tasks are cut out of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsemtl.data.base import Part, Samples, TaskData
from sparsemtl.data.subsets.pool import UNKNOWN, Pool, classes_of, in_memory_or_lazy, pool
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.tasks import Classification

Asked = str | Mapping[str, Any]
"""A data set's name, or a mapping of its `name`, its `task` and its parameters."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Data sets joined.

    Attributes:
        names: of all classes.
        pools: their training, validation and test samples.
        notes: what is to be said of them.
        stem: see `TaskData`.
    """

    names: tuple[str, ...]
    pools: tuple[Pool, Pool, Pool]
    notes: tuple[str, ...]
    stem: Callable[[], nn.Module] | None


@dataclass(frozen=True, eq=False)
class _Source:
    """One data set with the task whose classes count."""

    data: TaskData
    task: Classification

    def samples(self, part: Part) -> Samples:
        return part[self.task.name] if isinstance(part, Mapping) else part


def join(asked: Asked | Sequence[Asked], root: str | Path | None, *, download: bool) -> Sources:
    """Make the data sets that are asked for, and number their classes.

    Raises:
        ParameterError: if one is asked for twice, or has no classification, or several of which none is named.
        DataError: as the data sets, and if their inputs do not go together.
    """
    each = [asked] if isinstance(asked, (str, Mapping)) else list(asked)
    sources = [_load(one, root, download=download) for one in each]
    titles = [source.data.name for source in sources]
    if not sources or len(set(titles)) < len(titles):
        raise ParameterError(f"source: expected one or more data sets, each once; got {', '.join(titles) or 'none'}.")
    several = len(sources) > 1
    stemmed = [source.data.name for source in sources if source.data.stem is not None]
    if several and stemmed:
        raise ParameterError(f"source: {stemmed[0]} goes through a stem of its own and cannot be joined with others.")
    names = [f"{of.data.name}/{name}" if several else name for of in sources for name in of.task.class_names]
    notes = [f"{of.data.name}: {note}" for of in sources for note in of.data.notes]
    parts = ([getattr(source.data, part) for source in sources] for part in ("train", "validation", "test"))
    train, validation, test = (_pooled(sources, of_sources, titles) for of_sources in parts)
    return Sources(tuple(names), (train, validation, test), tuple(notes), sources[0].data.stem)


def _pooled(sources: Sequence[_Source], parts: Sequence[Part], titles: Sequence[str]) -> Pool:
    splits, classes, first = [], [], 0
    for source, part in zip(sources, parts, strict=True):
        samples = source.samples(part)
        splits.append(in_memory_or_lazy(samples))
        classes.append(_numbered(classes_of(samples, source.task), first))
        first += source.task.classes
    return pool(splits, classes, titles)


def _numbered(classes: Tensor, first: int) -> Tensor:
    """Classes counted from `first`."""
    return (classes + first).masked_fill(classes == UNKNOWN, UNKNOWN)


def _load(asked: Asked, root: str | Path | None, *, download: bool) -> _Source:
    from sparsemtl.data import DATASETS

    given: dict[str, Any] = {"name": asked} if isinstance(asked, str) else dict(asked)
    name, task = given.pop("name", None), given.pop("task", None)
    if not isinstance(name, str):
        raise ParameterError(f"source: expected a data set's name, or a mapping that has its `name`; got {asked!r}.")
    known = parameters_of(DATASETS[name])
    common = {key: value for key, value in (("root", root), ("download", download)) if key in known}
    data = DATASETS.build(name, **{**common, **given})
    return _Source(data, _classification(data, task))


def _classification(data: TaskData, name: str | None) -> Classification:
    tasks = {task.name: task for task in data.tasks if isinstance(task, Classification)}
    if name is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if name is None:
        found = f"the classifications {', '.join(tasks)}; say which by `task`" if tasks else "no classification"
        raise ParameterError(f"source: {data.name} has {found}.")
    if name not in tasks:
        raise ParameterError(f"source: {data.name}: {unknown_name('classification', name, tasks)}")
    return tasks[name]
