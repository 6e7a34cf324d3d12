"""Cache of values that are made from tasks, such as their metrics: making them takes as long as a small evaluation."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from sparsemtl.tasks.task import Task

Value = TypeVar("Value")


class TaskCache(Generic[Value]):
    """Values by task, each valid until an attribute of its task is set anew.

    Nothing is kept for a task with metrics of the user's own, which may change at any time.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Task, tuple[dict[str, Any], Value]] = WeakKeyDictionary()

    def take(self, task: Task) -> Value | None:
        """Remove the value of a task and return it, for this thread alone; None if there is no valid one."""
        attributes, value = self._kept.pop(task, ({}, None))
        now = vars(task)
        is_valid = attributes.keys() == now.keys() and all(part is now[name] for name, part in attributes.items())
        return value if is_valid else None

    def keep(self, task: Task, value: Value) -> None:
        """Keep the value of a task."""
        if not task.has_given_metrics:
            self._kept[task] = (dict(vars(task)), value)
