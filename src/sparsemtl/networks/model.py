"""Contract of architectures: their modules, and which tasks use which parameters."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsemtl.errors import ParameterError, check_list, unknown_name
from sparsemtl.tasks.batches import Group, Loaders, as_group, by_owner, first_batch, owner_of
from sparsemtl.tasks.forward_errors import PLAIN, explain

if TYPE_CHECKING:
    from sparsemtl.networks.declarations import Figure, SummaryTable
    from sparsemtl.tasks.task import Task

logger = logging.getLogger(__name__)


class MultiTaskModel(nn.Module, abc.ABC):
    """Base of networks with an output per task.

    An architecture returns from `parameter_tasks` the tasks that use each parameter, from `shared_modules` the modules
    that sharing methods may mask, and from `unmasked_modules` the other modules that several tasks use. Losses of tasks
    that are modules with parameters or buffers belong to the model, as `task_losses.<task>`; `task_modules` includes
    `loss_modules(task)`.
    """

    figures: ClassVar[tuple[Figure, ...]] = ()
    """Declarations of the names that `metrics` yields."""
    norms_per_task: bool = False
    """True if the tasks' activations differ, so that batch norms need statistics per task: tasks run different networks
    through the shared modules, or, which training notes, each has its own data."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        tasks = list(tasks)
        if (other := next((task for task in tasks if not _is_task(task)), None)) is not None:
            raise ParameterError(f"expected tasks, such as sm.Classification('name', 10), got {other!r}.")
        names = [task.name for task in tasks]
        if not names:
            raise ParameterError("a multi-task model needs at least one task.")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ParameterError(f"task names must differ, {doubled} occur more than once.")
        self.tasks: dict[str, Task] = {task.name: task for task in tasks}
        modules = {task.name: getattr(task, "loss_modules", lambda: None)() for task in tasks}
        if any(modules.values()):
            self.task_losses = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; raise errors of its modules with the task, the module and its input.

        Raises:
            ForwardError: if a module cannot compute with what it is given.
        """
        try:
            return super().__call__(*args, **kwargs)
        except PLAIN as error:
            if type(error) not in PLAIN or torch.compiler.is_compiling():
                raise
            asked = kwargs.get("tasks", args[1] if len(args) > 1 else None)
            raise explain(self, error, self.tasks if asked is None else asked) from error

    @abc.abstractmethod
    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return task -> outputs for the named tasks, all by default."""

    @abc.abstractmethod
    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return name of every parameter -> the tasks that use it."""

    @abc.abstractmethod
    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the modules that tasks share, by name: masks and statistics per task act on them."""

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the encoders whose blocks have a depth, by name, for `layer_decay`; none by default."""
        return {}

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the shared modules, by name."""
        return _parameters_in(self.shared_modules())

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """Return other modules that several tasks use, by name, such as those that mix the streams of the tasks."""
        return {}

    def unmasked_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the unmasked modules, by name."""
        return _parameters_in(self.unmasked_modules())

    def common_representation(self) -> str | None:
        """Return the name of the module whose output all tasks read, and through which all shared weights act.

        Balancers that compare gradients there (`mgda-ub`) work with such architectures only. None if there is none.
        """
        return None

    def replicated_modules(self) -> dict[str, nn.Module]:
        """Return modules of which every task has a copy, by name: soft masks act on them as on shared modules."""
        return {}

    def replicated_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the replicated modules, by name."""
        return _parameters_in(self.replicated_modules())

    def penalty(self, task: str, target: Tensor) -> Tensor | None:
        """Return a term of the task's loss on the batch of the last training forward pass, or None.

        Args:
            task: name of the task, one of those that the forward pass computed.
            target: labels of the batch, as `task.labels` returns them.
        """
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Change the model between epochs, such as which modules are tied; by default nothing changes.

        Changes must be stored in buffers, so that checkpoints hold them, and must not draw random numbers.

        Args:
            epoch: epoch that begins, counted from 0.
        """

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Yield what is logged after an epoch: (task or "", name of a figure, value)."""
        return iter(())

    def summary(self) -> dict[str, Any]:
        """Return the entry of the architecture in `summary.json`, beside its name."""
        return {}

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return tables of the architecture at the end of training, for the report."""
        return ()

    @property
    def lr_factors(self) -> dict[str, float]:
        """Factors of the learning rate by parameter name; 1 for parameters that are not named."""
        return {}

    @abc.abstractmethod
    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the modules that only this task uses, by name."""

    def loss_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the modules of the task's loss that have parameters or buffers, by name."""
        losses = self._modules.get("task_losses")
        return {f"task_losses.{task}": losses[task]} if isinstance(losses, nn.ModuleDict) and task in losses else {}

    def task_parameters(self, task: str) -> dict[str, nn.Parameter]:
        """Return the parameters of the modules that only this task uses, by name."""
        self.check_task(task)
        return _parameters_in(self.task_modules(task))

    @property
    def independent(self) -> bool:
        """True if no trained parameter is used by two tasks: training them together is training them apart."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return all(len(tasks) == 1 for name, tasks in self.parameter_tasks().items() if name in trained)

    def check_task(self, task: str) -> None:
        """Raise if the model has no such task."""
        if task not in self.tasks:
            raise ParameterError(unknown_name("task", task, self.tasks))

    def chosen(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        """Return the named tasks, all by default; raise if the model lacks one."""
        check_list(tasks, "tasks")
        names = tuple(self.tasks if tasks is None else tasks)
        for name in names:
            self.check_task(name)
        return names


def check_shapes(model: nn.Module) -> None:
    """Raise a ParameterError if a parameter has no shape yet, such as one of a default head before the first batch."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ParameterError(f"parameter {name!r} has no shape yet. Run the model on one batch first: `model(x)`.")


def _is_task(value: object) -> bool:
    return isinstance(getattr(value, "name", None), str) and callable(getattr(value, "labels", None))


def _parameters_in(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Return the device and the dtype in which a model reads floating-point inputs: those of its first weight."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    return (torch.device("cpu"), None) if weight is None else (weight.device, weight.dtype)


def first_group(model: MultiTaskModel, loaders: Loaders, task: str | None = None) -> Group:
    """Return the first batch of a task, by default of the first one, on the model's device and in its dtype."""
    owner = owner_of(loaders, next(iter(model.tasks)) if task is None else task)
    return as_group(first_batch(by_owner(loaders)[owner], owner), model.tasks, owner).to(*placement(model))
