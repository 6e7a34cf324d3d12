"""Single-task learning: one network per task, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sparsemtl.architectures.copies import Maker, one_per_task
from sparsemtl.architectures.heads import check_owned, heads_for
from sparsemtl.networks.model import MultiTaskModel

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class SingleTask(MultiTaskModel):
    """One network per task, none of them shared: single-task learning, at T times the memory and time.

    Args:
        encoder: a module to copy for every task; a function that returns a new module; or task name -> module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if a task has no encoder, or the encoders of two tasks have parameters in common.

    Examples:
        >>> model = SingleTask(nn.Linear(4, 8), [Classification("a", 3), Classification("b", 2)])
        >>> model.independent
        True
    """

    def __init__(
        self,
        encoder: Maker | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(tasks)
        encoders = one_per_task(encoder, self.tasks)
        check_owned("encoders", encoders, self.tasks)
        self.encoders = nn.ModuleDict({task: encoders[task] for task in self.tasks})
        self.heads = heads_for(self.tasks, heads, encoders)

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the networks of the named tasks on the same input."""
        return {task: self.heads[task](self.encoders[task](x)) for task in self.chosen(tasks)}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the one task that uses each parameter."""
        return {name: frozenset({name.split(".")[1]}) for name, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return an empty mapping."""
        return {}

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the encoder of every task."""
        return {f"encoders.{task}": encoder for task, encoder in self.encoders.items()}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's encoder and head."""
        self.check_task(task)
        own = {f"encoders.{task}": self.encoders[task], f"heads.{task}": self.heads[task]}
        return {**own, **self.loss_modules(task)}
