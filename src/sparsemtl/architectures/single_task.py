"""The baseline of every comparison: a network of its own for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from sparsemtl.models import MultiTaskModel, heads_for, width_of
from sparsemtl.tasks import Task


class SingleTask(MultiTaskModel):
    """T networks side by side that share nothing: single-task learning, T times the memory and time.

    Args:
        encoder: a module, of which every task gets a copy; a function that makes one; or task name -> module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

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
        self.encoders = nn.ModuleDict({task: self._own(encoder, task) for task in self.tasks})
        self.heads = heads_for(self.tasks, heads, {task: width_of(e) for task, e in self.encoders.items()})

    @staticmethod
    def _own(encoder: nn.Module | Callable[[], nn.Module] | Mapping[str, nn.Module], task: str) -> nn.Module:
        if isinstance(encoder, nn.Module):
            return deepcopy(encoder)
        return encoder[task] if isinstance(encoder, Mapping) else encoder()

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Every task's own network on the same input."""
        return {t: self.heads[t](self.encoders[t](x)) for t in (self.tasks if tasks is None else tasks)}

    def users(self) -> dict[str, frozenset[str]]:
        """Everything under a task's name is that task's."""
        return {name: frozenset({name.split(".")[1]}) for name, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The task's encoder and head."""
        return {f"encoders.{task}": self.encoders[task], f"heads.{task}": self.heads[task]}
