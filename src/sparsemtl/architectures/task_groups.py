"""Groups of tasks: one encoder per group, shared by its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.architectures.copies import Maker, copies
from sparsemtl.architectures.heads import heads_for
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.registry.parameters import validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class TaskGroups(MultiTaskModel):
    """One encoder per group of tasks, which its tasks share, and one head per task (Standley et al., ICML 2020).

    With one group it is `SharedBottom`, with one group per task `SingleTask`. `sm.task_affinity` measures which tasks
    use the same weights, and its `groups()` can be given here.

    Args:
        encoder: a module to copy for every group, or a function that returns a new module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Attributes:
        groups: names of the tasks of each group.

    Raises:
        ParameterError: if a group is empty or names an unknown task, or a task is not in exactly one group.

    Examples:
        >>> tasks = [Regression("a"), Regression("b"), Regression("c")]
        >>> model = TaskGroups(nn.Linear(6, 4), tasks, groups=[["a", "c"], ["b"]])
        >>> list(model.shared_modules()), list(model.task_modules("b"))
        (['encoders.0'], ['encoders.1', 'heads.b'])
    """

    @validated
    def __init__(
        self,
        encoder: Maker,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        groups: Annotated[
            Sequence[Sequence[str]] | None,
            Doc("Names of the tasks of each group, every task in one of them; by default one group of all tasks."),
        ] = None,
    ) -> None:
        super().__init__(tasks)
        self.groups = _checked(groups, list(self.tasks))
        self.encoders = nn.ModuleList(islice(copies(encoder, fresh=False), len(self.groups)))
        self._number = {task: number for number, group in enumerate(self.groups) for task in group}
        own = {task: self.encoders[self._number[task]] for task in self.tasks}
        self.heads = heads_for(self.tasks, heads, own)

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the encoder of each group with a named task once, then the head of each named task."""
        chosen = self.chosen(tasks)
        features = {number: self.encoders[number](x) for number in dict.fromkeys(self._number[t] for t in chosen)}
        return {task: self.heads[task](features[self._number[task]]) for task in chosen}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter: those of a group for its encoder, one for a head."""
        users = {
            f"encoders.{number}.{name}": frozenset(group)
            for number, group in enumerate(self.groups)
            for name, _ in self.encoders[number].named_parameters()
        }
        for task in self.tasks:
            users.update(dict.fromkeys(self.task_parameters(task), frozenset({task})))
        return users

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the encoders of groups with more than one task."""
        return {f"encoders.{i}": self.encoders[i] for i, group in enumerate(self.groups) if len(group) > 1}

    def common_representation(self) -> str | None:
        """Return the name of the encoder, if there is one group."""
        return "encoders.0" if len(self.groups) == 1 else None

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the encoder of every group."""
        return {f"encoders.{number}": encoder for number, encoder in enumerate(self.encoders)}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head, and its encoder if no other task is in its group."""
        self.check_task(task)
        number = self._number[task]
        alone = {f"encoders.{number}": self.encoders[number]} if len(self.groups[number]) == 1 else {}
        return {**alone, f"heads.{task}": self.heads[task], **self.loss_modules(task)}

    def summary(self) -> dict[str, Any]:
        """Return the groups."""
        return {"groups": [list(group) for group in self.groups]}


def _checked(groups: Sequence[Sequence[str]] | None, tasks: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups, after a check that they divide the tasks."""
    if groups is None:
        return (tuple(tasks),)
    named = [task for group in groups for task in group]
    if sorted(named) != sorted(tasks) or not all(groups):
        raise ParameterError(
            f"`groups` must name each of {', '.join(tasks)} once, in groups that are not empty. "
            f"Got {[list(group) for group in groups]}."
        )
    return tuple(tuple(group) for group in groups)
