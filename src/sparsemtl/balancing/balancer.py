"""The contract of balancers: the losses or gradients of T tasks into one update.

A training step gives a balancer one row of losses, and where it asks for them one row of gradients a task. It never
sees the model.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Balancer(abc.ABC):
    """Combines the tasks of a step."""

    #: The weights are known before the losses, so that every task can go backward as soon as it went forward.
    constant: bool = False
    #: Wants the rows of the tasks' gradients with respect to the shared weights.
    combines_gradients: bool = False
    #: Wants the losses of the same batch once more after the step.
    looks_back: bool = False

    def attach(self, tasks: int, device: torch.device) -> None:
        """Get ready for this many tasks."""

    @abc.abstractmethod
    def weights(self, losses: Tensor) -> Tensor:
        """Factor of every task's loss in the update, shape (T,): the slope of the combined loss in each.

        Args:
            losses: the tasks' losses times their own weights, detached, shape (T,). A task without a label in this
                batch enters with its last loss.
        """

    def aggregate(self, rows: Tensor) -> Tensor:
        """One gradient out of the tasks' gradients: (T, P) -> (P,)."""
        raise NotImplementedError(f"{type(self).__name__} combines losses.")

    def look_back(self, losses: Tensor) -> None:
        """Learn from the losses of the same batch after the step, shape (T,)."""

    def end_epoch(self) -> None:
        """Close the books of an epoch."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """What the run's optimizer shall train along, without weight decay; `weights` leaves gradients on it."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave, after `attach`."""


def module_memory(module: nn.Module) -> dict[str, Any]:
    """What a module remembers in plain attributes, beside parameters and buffers: TorchJD keeps histories there."""
    internal = vars(nn.Module())
    kinds = (Tensor, list, tuple, int, float, str, bool, type(None))
    return {name: v for name, v in vars(module).items() if name not in internal and isinstance(v, kinds)}


class TorchJD(Balancer):
    """State and device of a TorchJD module, which subclasses call.

    Args:
        make: number of tasks -> the module.
    """

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        self._make = make
        self._module: Any = None

    @property
    def module(self) -> Any:
        """The TorchJD module; it exists once the number of tasks is known."""
        if self._module is None:
            raise RuntimeError("the balancer is not attached yet; call attach(tasks, device).")
        return self._module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the module."""
        self._module = self._make(tasks).to(device)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, buffers and histories."""
        return {"module": dict(self.module.state_dict()), "memory": module_memory(self.module)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        device = next(iter(state["module"].values()), torch.empty(0)).device
        self.module.load_state_dict(state["module"])
        for name, value in state["memory"].items():
            setattr(self.module, name, value.to(device) if isinstance(value, Tensor) else value)
