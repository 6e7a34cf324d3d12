"""Which class of the auxiliary task every class of a small task is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.architectures.damtl.reference import Source
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.tasks import Classification, Task

ClassMap = Mapping[str, Any]
"""Class of the task -> class of the auxiliary task, or None for one that has no counterpart; names or indices."""

NEAR = 0.75
"""How alike a name must be to be thought of, in [0, 1]: two words that have most of their letters in common."""


class ClassMapping(nn.Module):
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
) -> dict[str, ClassMapping]:
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


def counterparts(task: Classification, auxiliary: Classification, given: ClassMap | None = None) -> ClassMapping:
    """Find every class of a task among those of the auxiliary task.

    Classes are matched by name, and where no name is the same, by names that differ in case, blanks and signs only.
    The numbers of classes without names count as names if the auxiliary task has as many classes: otherwise the task
    may have numbered some of them anew.

    Args:
        task: the task.
        auxiliary: the auxiliary task.
        given: what to take instead, for some classes or all.

    Raises:
        ParameterError: if a class has no counterpart and `given` does not say so, or `given` names what is not there.
    """
    chosen = {task.class_names[_index(task, one)]: other for one, other in (given or {}).items()}
    found = [
        _chosen(chosen[name], auxiliary) if name in chosen else _same(name, task, auxiliary)
        for name in task.class_names
    ]
    missing = [name for name, index in zip(task.class_names, found, strict=True) if index is None]
    if missing:
        raise ParameterError(_lacking(missing, task, auxiliary))
    return ClassMapping(torch.tensor(found))


def _chosen(other: Any, auxiliary: Classification) -> int:
    """The index of the class that was given."""
    return -1 if other is None else _index(auxiliary, other)


def _same(name: str, task: Classification, auxiliary: Classification) -> int | None:
    """The index of the one auxiliary class of the same name."""
    if _numbered_anew(task, auxiliary):
        return None
    for same in (str, _plain):
        matches = [i for i, other in enumerate(auxiliary.class_names) if same(other) == same(name)]
        if len(matches) == 1:
            return matches[0]
    return None


def _numbered_anew(task: Classification, auxiliary: Classification) -> bool:
    """True if the task's class 0 need not be the auxiliary task's."""
    return task.numbered and task.classes != auxiliary.classes


def _lacking(missing: Sequence[str], task: Classification, auxiliary: Classification) -> str:
    """Say of which classes the counterpart is not known, and how to tell it."""
    known = ", ".join(auxiliary.class_names)
    if _numbered_anew(task, auxiliary):
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
    """The auxiliary classes of nearly that name: all of them, if they differ in case, blanks and signs only."""
    plain = {other: _plain(other) for other in auxiliary.class_names}
    close = get_close_matches(_plain(name), plain.values(), n=1, cutoff=NEAR)
    near = [repr(other) for other in plain if plain[other] in close]
    return f" (perhaps {' or '.join(near)})" if near else ""


def _index(task: Classification, one: Any) -> int:
    """The index of a class that is given by name or by index."""
    if str(one) in task.class_names:
        return task.class_names.index(str(one))
    if isinstance(one, int) and 0 <= one < task.classes:
        return one
    raise ParameterError(f"class_map: task {task.name!r}: {unknown_name('class', one, task.class_names)}")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()
