"""The baseline of every comparison: a network of its own for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel, check_owned, heads_for
from sparsemtl.tasks.task import Task


class SingleTask(MultiTaskModel):
    """T networks side by side that share nothing: single-task learning, T times the memory and time.

    Args:
        encoder: a module, of which every task gets a copy; a function that makes one; or task name -> module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if a task gets no encoder, or two tasks get one with parameters in common.

    Example:
        >>> model = SingleTask(nn.Linear(4, 8), [Classification("a", 3), Classification("b", 2)])
        >>> model.independent
        True
    """

    def __init__(
        self,
        encoder: nn.Module | Callable[[], nn.Module] | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(tasks)
        encoders = self._each(encoder)
        check_owned("encoders", encoders, self.tasks)
        self.encoders = nn.ModuleDict({task: encoders[task] for task in self.tasks})
        self.heads = heads_for(self.tasks, heads, encoders)

    def _each(self, encoder: nn.Module | Callable[[], nn.Module] | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        if isinstance(encoder, (Mapping, nn.ModuleDict)):
            for task in self.tasks:
                if task not in encoder:
                    raise ParameterError(f"encoders: task {task!r} has no encoder; found {sorted(encoder)}.")
            return dict(encoder.items())
        if isinstance(encoder, nn.Module):
            return {task: deepcopy(encoder) for task in self.tasks}
        return {task: encoder() for task in self.tasks}

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Every task's own network on the same input."""
        return {task: self.heads[task](self.encoders[task](x)) for task in self.chosen(tasks)}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Everything under a task's name is that task's."""
        return {name: frozenset({name.split(".")[1]}) for name, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The task's encoder and head."""
        self.check_task(task)
        return {f"encoders.{task}": self.encoders[task], f"heads.{task}": self.heads[task]}
