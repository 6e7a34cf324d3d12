"""Which class of the auxiliary task every class of a small task is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.architectures.reference import Source
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.tasks import Classification, Task

ClassMap = Mapping[str, Any]
"""Class of the task -> class of the auxiliary task, or None for one that has no counterpart; names or indices."""


class Counterparts(nn.Module):
    """The classes of a task that the auxiliary task has, and which of its classes they are.

    Args:
        theirs: the auxiliary class of every class of the task, int64 (c,); -1 for one that has none.

    Attributes:
        theirs: as given.
        own: the classes that have a counterpart (n,).
        known: their counterparts (n,).
    """

    theirs: Tensor
    own: Tensor
    known: Tensor

    def __init__(self, theirs: Tensor) -> None:
        super().__init__()
        self.register_buffer("theirs", theirs)
        self.register_buffer("own", (theirs >= 0).nonzero().squeeze(1))
        self.register_buffer("known", theirs[theirs >= 0])


def classes_in_common(
    tasks: Mapping[str, Task], source: Source | None, given: Mapping[str, ClassMap | None], others: Collection[str]
) -> dict[str, Counterparts]:
    """The counterparts of every task's classes, for tasks whose last layer is to be made of the auxiliary one's rows.

    Args:
        tasks: the tasks; only classifications have classes.
        source: what the auxiliary network was trained for; without a last layer there are no rows.
        given: task -> see `counterparts`, or None for a task whose classes the auxiliary task does not know.
        others: tasks that have another last layer.

    Raises:
        ParameterError: see `counterparts`; or if `given` names no such task, or there is nothing to map to.
    """
    for name in given:
        if name not in tasks:
            raise ParameterError(f"class_map: {unknown_name('task', name, tasks)}")
    if source is None or source.last is None:
        if given:
            raise ParameterError(
                "class_map: the auxiliary network's last layer is not known, so there are no classes to map to. It is "
                "given by `source`, in a configuration by `pretraining`."
            )
        return {}
    chosen = {name: t for name, t in tasks.items() if isinstance(t, Classification) and name not in others}
    for name, classes in given.items():
        if classes is not None and name not in chosen:
            raise ParameterError(
                f"class_map: task {name!r} is no classification, or has a head of its own, which is not made of the "
                "auxiliary network's rows. Leave it out."
            )
    unknown = {name for name, classes in given.items() if classes is None}
    return {
        name: counterparts(task, source.task, given.get(name)) for name, task in chosen.items() if name not in unknown
    }


def counterparts(task: Classification, auxiliary: Classification, given: ClassMap | None = None) -> Counterparts:
    """Find every class of a task among those of the auxiliary task.

    Classes are matched by name, and where no name is the same, by names that differ in case, blanks and signs only.

    Args:
        task: the task.
        auxiliary: the auxiliary task.
        given: what to take instead, for some classes or all.

    Raises:
        ParameterError: if a class has no counterpart and `given` does not say so, or `given` names what is not there.
    """
    chosen = {task.class_names[_index(task, one)]: other for one, other in (given or {}).items()}
    found = [_found(name, task, auxiliary, chosen) for name in task.class_names]
    return Counterparts(torch.tensor(found))


def _found(name: str, task: Classification, auxiliary: Classification, chosen: Mapping[str, Any]) -> int:
    if name in chosen:
        return -1 if chosen[name] is None else _index(auxiliary, chosen[name])
    for same in (str, _plain):
        matches = [i for i, other in enumerate(auxiliary.class_names) if same(other) == same(name)]
        if len(matches) == 1:
            return matches[0]
    raise ParameterError(
        f"task {task.name!r}: the auxiliary task {auxiliary.name!r} lacks its class {name!r}. "
        f"{unknown_name('class', name, auxiliary.class_names)} Say which class it is in `class_map`, as in "
        f"{{{task.name}: {{{name}: ...}}}}, with null for one that has no counterpart."
    )


def _index(task: Classification, one: Any) -> int:
    """The index of a class that is given by name or by index."""
    if str(one) in task.class_names:
        return task.class_names.index(str(one))
    if isinstance(one, int) and 0 <= one < task.classes:
        return one
    raise ParameterError(f"class_map: task {task.name!r}: {unknown_name('class', one, task.class_names)}")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
