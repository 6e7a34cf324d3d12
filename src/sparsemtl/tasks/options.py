"""Options of a data set's tasks, as a configuration sets them: `task_options: {depth: {criterion: mse}}`.

They are the keyword parameters of the kind of task, but those that the data decide and those with a key of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsemtl.errors import ConfigError, SparseMTLError, unknown_name
from sparsemtl.registry.checking import fits
from sparsemtl.registry.parameters import Parameter, parameters_of
from sparsemtl.tasks import TASKS, Task

NO_OPTIONS = ("weight", "target", "ignore_index", "background", "loss")
"""Parameters that are no options: `weights` is a key of its own, a loss is code, the others say how labels are coded.
"""


def options_of(kind: Callable[..., Task]) -> dict[str, Parameter]:
    """Return the options of a kind of task by name."""
    return {name: parameter for name, parameter in parameters_of(kind).items() if name not in NO_OPTIONS}


def check_options(options: Mapping[str, Any]) -> str | None:
    """Return what is wrong with names of options, as far as that shows without the data: no kind of task has such one.

    Args:
        options: of one task.
    """
    known = {name for kind in TASKS.values() for name in options_of(kind)}
    wrong = next((name for name in options if name not in known), None)
    return None if wrong is None else unknown_name("task option", wrong, known)


def with_options(task: Task, options: Mapping[str, Any]) -> Task:
    """Return a task with options changed; the task itself if there are none.

    Raises:
        ConfigError: naming an option that its kind lacks, or a value that the option does not take.
    """
    if not options:
        return task
    known, kind, place = options_of(type(task)), type(task).__name__, f"task_options.{task.name}"
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{place}: {unknown_name(f'option of {kind}', name, known)}")
        if not fits(value, known[name].hint):
            raise ConfigError(f"{place}.{name}: expected {known[name].kind}, got {value!r}.")
    try:
        changed = task.with_parameters(**options)
        changed.metrics()
    except SparseMTLError as error:
        raise ConfigError(f"{place}: {error}") from None
    return changed
