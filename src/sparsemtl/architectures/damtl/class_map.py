"""Mapping from the classes of a task to those of the auxiliary task."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsemtl.architectures.damtl.reference import Source
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.tasks.classification import Classification

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

ClassMap = Mapping[str, Any]
"""Class of the task -> class of the auxiliary task, or None for a class without a counterpart; names or indices."""

_MIN_SIMILARITY = 0.75
"""Least similarity in [0, 1] at which an error suggests a name: that of two words with most of their letters equal."""


class ClassMapping(nn.Module):
    """Counterparts of a task's classes among the classes of the auxiliary task.

    Args:
        indices: int64 (c,), auxiliary class of every class of the task; -1 for a class without a counterpart.

    Attributes:
        indices: see the argument.
        mapped: int64 (n,), classes of the task that have a counterpart.
        counterparts: int64 (n,), auxiliary classes of the mapped classes.
    """

    indices: Tensor
    mapped: Tensor
    counterparts: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.register_buffer("mapped", (indices >= 0).nonzero().squeeze(1))
        self.register_buffer("counterparts", indices[indices >= 0])


def class_mappings(
    tasks: Mapping[str, Task], source: Source | None, given: Mapping[str, ClassMap | None], others: Collection[str]
) -> dict[str, ClassMapping]:
    """Return the class mapping of every task whose last layer is made of rows of the auxiliary network's last layer.

    Args:
        tasks: the tasks; only classifications have classes.
        source: training task of the auxiliary network; without its last layer there are no rows.
        given: task name -> argument `given` of `class_mapping`, or None for a task without counterparts.
        others: names of tasks that have another last layer.

    Raises:
        ParameterError: see `class_mapping`; or if `given` names an unknown task, a task that is no classification or
            has another last layer, or if the auxiliary network's last layer is unknown.
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
    without = {name for name, classes in given.items() if classes is None}
    return {
        name: class_mapping(task, source.task, given.get(name)) for name, task in chosen.items() if name not in without
    }


def class_mapping(task: Classification, auxiliary: Classification, given: ClassMap | None = None) -> ClassMapping:
    """Find the counterpart of every class of a task among the classes of the auxiliary task.

    Classes are matched by name; if no auxiliary class has the same name, by names that differ only in case, blanks and
    punctuation. Numbers of classes without names are used as names only if both tasks have equally many classes:
    otherwise the task may number the same classes differently.

    Args:
        task: the task.
        auxiliary: the auxiliary task.
        given: counterparts of some or all classes, in place of the matched ones.

    Raises:
        ParameterError: if a class has no counterpart and `given` does not name it, or `given` names an unknown class.
    """
    chosen = {task.class_names[_index(task, one)]: other for one, other in (given or {}).items()}
    found = [
        _given_index(chosen[name], auxiliary) if name in chosen else _index_of_name(name, task, auxiliary)
        for name in task.class_names
    ]
    missing = [name for name, index in zip(task.class_names, found, strict=True) if index is None]
    if missing:
        raise ParameterError(_missing_message(missing, task, auxiliary))
    return ClassMapping(torch.tensor(found))


def _given_index(other: Any, auxiliary: Classification) -> int:
    return -1 if other is None else _index(auxiliary, other)


def _index_of_name(name: str, task: Classification, auxiliary: Classification) -> int | None:
    """Return the index of the one auxiliary class of the same name, None if there is no such class."""
    if _numbered_differently(task, auxiliary):
        return None
    for key in (str, _normalized):
        matches = [i for i, other in enumerate(auxiliary.class_names) if key(other) == key(name)]
        if len(matches) == 1:
            return matches[0]
    return None


def _numbered_differently(task: Classification, auxiliary: Classification) -> bool:
    """Return True if class 0 of the task may be another class than class 0 of the auxiliary task."""
    return task.numbered and task.classes != auxiliary.classes


def _missing_message(missing: Sequence[str], task: Classification, auxiliary: Classification) -> str:
    """Return the error message for classes without a counterpart."""
    known = ", ".join(auxiliary.class_names)
    if _numbered_differently(task, auxiliary):
        why = (
            f"its {task.classes} classes have numbers for names, so that {', '.join(missing)} may be any of the "
            f"{auxiliary.classes} of the auxiliary task {auxiliary.name!r}: {known}. Give the classes their names, or "
            "say"
        )
    else:
        listed = ", ".join(f"{name!r}{_hint(name, auxiliary)}" for name in missing)
        classes = "class" if len(missing) == 1 else "classes"
        why = f"the auxiliary task {auxiliary.name!r} lacks its {classes} {listed}. Known: {known}. Say"
    return (
        f"task {task.name!r}: {why} which classes these are in `class_map`, as in "
        f"{{{task.name}: {{{missing[0]}: ...}}}}, with null for one that has no counterpart."
    )


def _hint(name: str, auxiliary: Classification) -> str:
    """Return the auxiliary classes with the most similar name; several if they differ in case and signs only."""
    normalized = {other: _normalized(other) for other in auxiliary.class_names}
    close = get_close_matches(_normalized(name), normalized.values(), n=1, cutoff=_MIN_SIMILARITY)
    near = [repr(other) for other in normalized if normalized[other] in close]
    return f" (perhaps {' or '.join(near)})" if near else ""


def _index(task: Classification, one: Any) -> int:
    """Return the index of a class that is given by name or by index."""
    if str(one) in task.class_names:
        return task.class_names.index(str(one))
    if isinstance(one, int) and 0 <= one < task.classes:
        return one
    raise ParameterError(f"class_map: task {task.name!r}: {unknown_name('class', one, task.class_names)}")


def _normalized(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
