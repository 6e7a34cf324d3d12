"""Distillation: outputs of a trained network as soft targets beside the labels."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.task_networks import TaskNetworks, dense_networks
from sparsemtl.registry.parameters import Positive, validated
from sparsemtl.tasks.batches import Group
from sparsemtl.tasks.soft_targets import soft_loss
from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.trained import Trained


@runtime_checkable
class HasNetworks(Protocol):
    """Trained model with the networks of its tasks: a `Trainer`, a `LoadedRun`, an `AutoResult`."""

    @property
    def model(self) -> MultiTaskModel:
        """The model."""
        ...

    @property
    def networks(self) -> TaskNetworks:
        """Networks of its tasks."""
        ...


class Teacher:
    """Trained network whose outputs are soft targets for another one (Hinton et al. 2015).

    The loss of each task that the teacher has as well becomes loss + weight * distance, the distance being that of the
    outputs from the teacher's: for classes the Kullback-Leibler divergence at a temperature, for values the squared
    error over the teacher's variance, for directions 1 - cosine; see `sparsemtl.tasks.soft_targets`. Only samples,
    pixels and tokens with a known label count. The balancer weighs both terms together.

    The teacher is a copy, in eval mode, and is never trained.
    """

    @validated
    def __init__(
        self,
        of: Annotated[
            MultiTaskModel | HasNetworks,
            Doc("The trained model; or a `Trainer`, a loaded run or an `AutoResult`, with its tasks' networks."),
        ],
        *,
        weight: Annotated[Positive, Doc("Factor of the distance from the teacher's outputs.")] = 1.0,
        temperature: Annotated[Positive, Doc("Divisor of the logits of classes.")] = 2.0,
    ) -> None:
        model = of if isinstance(of, MultiTaskModel) else of.model
        networks = dense_networks(model, model.tasks) if isinstance(of, MultiTaskModel) else of.networks
        model, networks = deepcopy((model, networks))
        self.weight = weight
        self.temperature = temperature
        self._trained = Trained(model.eval().requires_grad_(False), networks, model)

    def __repr__(self) -> str:
        kind = type(self._trained.model).__name__
        return f"Teacher({kind}, weight={self.weight:g}, temperature={self.temperature:g})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it has outputs for."""
        return tuple(self._trained.tasks)

    def check(self, tasks: Iterable[str]) -> None:
        """Raise a ParameterError if none of these tasks is one of the teacher's."""
        names = tuple(tasks)
        if not set(names) & set(self.tasks):
            raise ParameterError(f"the teacher has the tasks {', '.join(self.tasks)}, none of {', '.join(names)}.")

    @torch.no_grad()
    def outputs(self, x: Any, tasks: Iterable[str]) -> dict[str, Tensor]:
        """Return task -> soft targets for one input, of those tasks that the teacher has.

        Args:
            x: a batch, as the loaders yield it.
            tasks: names of tasks.
        """
        names = tuple(name for name in tasks if name in self._trained.tasks)
        if not names:
            return {}
        model = self._trained.model
        device, dtype = placement(model)
        with eval_mode(model):
            return self._trained.outputs(Group(x, {}, names).to(device, dtype))

    def loss(self, task: Task, output: Tensor, soft: Tensor, label: Tensor) -> Tensor:
        """Return weight * distance of outputs from soft targets, a scalar.

        Args:
            task: the task.
            output: outputs of the trained network, (B, ...).
            soft: those of the teacher, from `outputs`.
            label: labels that `Task.labels` returned; unknown ones do not count.
        """
        return self.weight * soft_loss(task, output, soft.to(output.device), label, self.temperature)
