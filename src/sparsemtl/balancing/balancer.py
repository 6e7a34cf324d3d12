"""The contract of balancers: the losses or gradients of T tasks into one update.

A training step gives a balancer one row of losses, and where it asks for them one row of gradients a task. It never
sees the model.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sparsemtl.balancing.nash import remake_problem
from sparsemtl.networks.declarations import Figure, SummaryTable
from sparsemtl.tasks.nests import to_device


class Balancer(abc.ABC):
    """Combines the tasks of a step."""

    #: The weights are known before the losses, so that every task can go backward as soon as it went forward.
    constant: bool = False
    #: Wants the rows of the tasks' gradients with respect to the shared weights.
    combines_gradients: bool = False
    #: Wants the losses of the same batch once more after the step.
    needs_post_step_losses: bool = False

    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("weight", "Loss weights", "factor of each task's loss in the last step of the epoch"),
    )
    """Declarations of the names that are logged: `weight` for every balancer, and those that `metrics` yields."""

    def attach(self, tasks: int, device: torch.device) -> None:
        """Get ready for this many tasks."""

    @abc.abstractmethod
    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Factor of every task's loss in the update, shape (T,): the slope of the combined loss in each.

        Args:
            losses: the tasks' losses times their own weights, detached, shape (T,). A task without a label in this
                batch enters with its last loss.
            present: (T,), True for tasks with a label in this batch; None is all. Nothing that belongs to another task
                alone changes, and its parameters get no gradient.
        """

    def aggregate(self, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Combine the tasks' gradients into one: (T, P) -> (P,).

        Args:
            rows: a gradient per task; zero for a task without one.
            present: (T,), True for tasks that have one; None is all. What is remembered of another task stays.
        """
        raise NotImplementedError(f"{type(self).__name__} combines losses.")

    def observe_post_step_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Read the losses of the same batch after the step, shape (T,); `present` as in `weights`."""

    def held(self, present: Tensor, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Context of a step of the optimizer in which nothing moves that belongs to tasks without a label.

        Args:
            present: (T,), True for tasks with a label in this step.
            optimizer: what takes the step; its memory of them stays as well.
        """
        return nullcontext()

    def end_epoch(self) -> None:
        """Close the books of an epoch."""

    def metrics(self) -> Iterator[tuple[int | None, str, float]]:
        """Yield what is logged after an epoch: (row of the task, or None for all tasks together; name; value)."""
        return iter(())

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return tables of the balancer at the end of training, for the report."""
        return ()

    def parameters(self) -> Iterable[nn.Parameter]:
        """What the run's optimizer shall train along, without weight decay; `weights` leaves gradients on it."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, after `attach`."""


class TorchJD(Balancer):
    """State and device of a TorchJD module, which subclasses call.

    Args:
        make: number of tasks -> the module.
    """

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        self._make = make
        self._module: Any = None
        self._device = torch.device("cpu")

    @property
    def module(self) -> Any:
        """The TorchJD module; it exists once the number of tasks is known."""
        if self._module is None:
            raise RuntimeError("the balancer is not attached yet; call attach(tasks, device).")
        return self._module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the module, with the preference vectors that it holds in plain attributes, on the device."""
        self._module = self._make(tasks).to(device)
        self._device = device
        for part in self._module.modules():
            for name, value in _memory(part).items():
                setattr(part, name, to_device(value, device))

    def state_dict(self) -> dict[str, Any]:
        """Parameters, and what the module and its parts remember in buffers and plain attributes."""
        return {
            "parameters": {name: p.detach().clone() for name, p in self.module.named_parameters()},
            "memory": {path: self._packed(_memory(part)) for path, part in self.module.named_modules()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(state["parameters"][name])
        for path, memory in state["memory"].items():
            part = self.module.get_submodule(path)
            for name, value in memory.items():
                setattr(part, name, self._unpacked(value))
        remake_problem(self.module)

    def _packed(self, value: Any) -> Any:
        """A value in the form in which checkpoints hold it."""
        if isinstance(value, Tensor):
            away = value.device.type == "cpu" != self._device.type  # some keep their history on the CPU always
            return {"tensor": value.detach().clone(), "away": away}
        if isinstance(value, np.ndarray):
            return {"array": torch.tensor(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, Mapping):
            return {name: self._packed(item) for name, item in value.items()}
        return type(value)(map(self._packed, value)) if isinstance(value, (list, tuple)) else value

    def _unpacked(self, value: Any) -> Any:
        match value:
            case {"tensor": tensor, "away": away}:
                return tensor.clone() if away else tensor.clone().to(self._device)
            case {"array": tensor}:
                return tensor.cpu().numpy().copy()
            case {"dtype": name}:
                return DTYPES[name]
            case {"device": _}:
                return self._device
            case list() | tuple():
                return type(value)(map(self._unpacked, value))
        return value


DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
PLAIN = (Tensor, np.ndarray, list, tuple, int, float, str, bool, type(None), torch.dtype, torch.device)


def _memory(part: nn.Module) -> dict[str, Any]:
    """What a module remembers beside its parameters: buffers, and attributes, where TorchJD keeps histories."""
    internal = vars(nn.Module())
    plain = {name: v for name, v in vars(part).items() if name not in internal and isinstance(v, PLAIN)}
    return {**plain, **part._buffers}
