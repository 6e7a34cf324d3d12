"""A sharing method beside its model and current networks, as tests drive it: `Started(method, model)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import sparsemtl as sm
from sparsemtl.balancing import as_balancer
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing import AfterStep, Sharing, StepWeights, TaskPenalty
from sparsemtl.training.steps.step import TrainingStep
from sparsemtl.training.steps.update import choose_update


class Started:
    """A method that was started on a model, or that of a training step.

    Everything that is not here is read from the method itself.
    """

    def __init__(self, method: Sharing, model: sm.MultiTaskModel, step: TrainingStep | None = None) -> None:
        self.method = method
        self.model = model
        self._step = step
        self._networks = method.start(model) if step is None else step.networks

    @classmethod
    def of(cls, step: TrainingStep) -> Started:
        assert step.sharing is not None
        return cls(step.sharing, step.model, step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    @property
    def networks(self) -> TaskNetworks:
        return self._networks if self._step is None else self._step.networks

    @networks.setter
    def networks(self, networks: TaskNetworks) -> None:
        if self._step is None:
            self._networks = networks
        else:
            self._step.networks = networks

    @property
    def masks(self) -> Any:
        return self.networks.kept(self.model.shared_parameters())

    @property
    def norms(self) -> dict[str, Mapping[str, Tensor | None]]:
        """Task -> its own statistics, as they are now."""
        return {task: network.own_tensors for task, network in self.networks.items()}

    @property
    def soft(self) -> dict[str, Mapping[str, Tensor]]:
        """Task -> its soft masks."""
        return {task: network.weight_factors for task, network in self.networks.items()}

    @property
    def one_network(self) -> bool:
        return self.networks.one_network

    def view(self, task: str) -> AbstractContextManager[None]:
        return self.networks.swapped(self.model, task)

    def active(self, tasks: Sequence[str]) -> Any:
        return self.networks.trainable(tasks)

    def gradient_mask(self, task: str) -> Any:
        return self.networks[task].gradient_mask or None

    def penalty(self, task: str) -> Tensor | None:
        return self.method.penalty(self.model, self.networks, task) if isinstance(self.method, TaskPenalty) else None

    def update_for(self, *, own_data: bool, balancing: Any = "mean") -> str:
        asked = self.method.update
        return choose_update(self.model, self.networks, as_balancer(balancing), asked=asked, own_data=own_data)

    def begin_epoch(self, epoch: int, loaders: Any) -> None:
        changed = self.method.begin_epoch(epoch, self.model, self.networks, loaders)
        self.networks = self.networks if changed is None else changed

    def end_epoch(self, epoch: int) -> None:
        self.method.end_epoch(epoch, self.networks)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(self.method, AfterStep)
        changed = self.method.after_step(self.model, self.networks, optimizer, StepWeights())
        self.networks = self.networks if changed is None else changed

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        return self.method.metrics(self.model, self.networks)

    def summary(self) -> dict[str, Any]:
        return self.method.summary(self.model, self.networks)

    def parameters(self) -> Iterator[Any]:
        return self.networks.parameters()

    def state_dict(self) -> dict[str, Any]:
        return {"method": self.method.state_dict(), "networks": self.networks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.networks = self.networks.restored(state["networks"])
