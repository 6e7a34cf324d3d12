"""Losses of the tasks on a training batch: labels are checked once, and one forward pass serves several tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from sparsemtl.errors import ForwardError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.sharing import Sharing, TaskPenalty
from sparsemtl.tasks.batches import Group
from sparsemtl.tasks.nests import tensors_in, to_device
from sparsemtl.training.steps.backend import Backend
from sparsemtl.training.steps.finite import not_finite_loss
from sparsemtl.training.steps.result import StepResult
from sparsemtl.training.steps.teacher import Teacher

LOSS_TEACHER = "loss_teacher"
"""Term of a task's loss in the figures of a run: the distance from the teacher's outputs."""


@dataclass(frozen=True)
class ReadyBatch:
    """A group on the device, with checked labels.

    Attributes:
        x: the input.
        labels: task -> labels.
        labelled: the tasks with a known label.
        complete: the tasks all of whose labels are known.
        count: number of samples.
        soft: task -> outputs of the teacher.
        shares: task -> share of this process in the known labels of all processes; 1 if it is not named.
        soft_shares: task -> its share in the distances from the teacher's outputs, likewise.
    """

    x: Any
    labels: dict[str, Tensor]
    labelled: tuple[str, ...]
    complete: set[str]
    count: int
    soft: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    soft_shares: dict[str, float] = field(default_factory=dict)


class BatchLosses:
    """Computes the losses of batches.

    Args:
        model: the model.
        backend: device of the batches, and what runs in place of the model.
        sharing: sharing method, which may have a term per task (`TaskPenalty`).
        around: makes the context of a forward pass.

    Attributes:
        teacher: network whose outputs are soft targets; None has none.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        backend: Backend,
        sharing: Sharing,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._around = around
        self._model = model
        self._backend = backend
        self._penalty = sharing.penalty if isinstance(sharing, TaskPenalty) else None
        self.teacher: Teacher | None = None

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the tasks that the teacher has."""
        return () if self.teacher is None else tuple(t for t in self._model.tasks if t in self.teacher.tasks)

    def ready(self, group: Group) -> ReadyBatch:
        """Check the labels of a group, and move it to the device.

        Raises:
            LabelError: if labels do not fit their task.
        """
        labels: dict[str, Tensor] = {}
        labelled: list[str] = []
        complete: set[str] = set()
        count, device = 0, self._backend.device
        for name in group.tasks:
            task = self._model.tasks[name]
            label, is_complete = task.complete_labels(group.targets)
            if is_complete:
                complete.add(name)
            if is_complete or bool(task.labelled(label).any()):
                labelled.append(name)
            count = max(count, label.shape[0])
            labels[name] = to_device(label, device)
        x = to_device(group.x, device)
        soft = {} if self.teacher is None else self.teacher.outputs(x, labelled)
        return ReadyBatch(x, labels, tuple(labelled), complete, count, soft)

    def __call__(
        self, batch: ReadyBatch, tasks: tuple[str, ...], networks: TaskNetworks, result: StepResult, where: str
    ) -> dict[str, Tensor]:
        """Run one forward pass; return losses and the model's terms times the tasks' weights, plus the method's terms.

        Where several processes compute, all of it is times this process's shares.

        Args:
            batch: the batch.
            tasks: names of the tasks, which have one network; the model computes with it now.
            networks: the networks of all tasks.
            result: the losses without terms and weights are added to it.
            where: place in the run, for error messages.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite.
        """
        try:
            with self._around():
                outputs = self._backend.module(batch.x, tasks=tasks)
        except ForwardError as error:
            raise error.at(where or "training") from error.__cause__
        terms = {
            name: self._model.tasks[name].checked_losses(
                outputs[name], batch.labels[name], complete=name in batch.complete
            )
            for name in tasks
        }
        losses = {name: found.pop("loss") for name, found in terms.items()}
        soft = self._soft_losses(batch, outputs)
        for name, value in zip(tasks, values_of(losses.values()), strict=True):
            if not isfinite(value):
                raise not_finite_loss(f"the loss of task {name!r}", value, where, tensors_in(batch.x))
            share = batch.shares.get(name, 1.0)
            more = {term: float(loss.item()) * share for term, loss in terms[name].items()}
            if name in soft:
                more[LOSS_TEACHER] = float(soft[name].item())
            result.add(name, value * share, more)
        return {name: self._with_terms(name, loss, soft.get(name), batch, networks) for name, loss in losses.items()}

    def _soft_losses(self, batch: ReadyBatch, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return task -> distance from the teacher's outputs times this process's share, of the tasks that it has."""
        teacher = self.teacher
        if teacher is None:
            return {}
        tasks, labels = self._model.tasks, batch.labels
        return {
            name: times(
                teacher.loss(tasks[name], output, batch.soft[name], labels[name]), batch.soft_shares.get(name, 1.0)
            )
            for name, output in outputs.items()
            if name in batch.soft
        }

    def _with_terms(
        self, task: str, loss: Tensor, soft: Tensor | None, batch: ReadyBatch, networks: TaskNetworks
    ) -> Tensor:
        """Return the loss, the teacher's and the model's term times the task's weight, plus the method's term."""
        share = batch.shares.get(task, 1.0)
        total = times(loss, share)
        if soft is not None:
            total = total + soft
        own = self._model.penalty(task, batch.labels[task])
        if own is not None:
            total = total + times(own, share)
        total = times(total, self._model.tasks[task].weight)
        term = None if self._penalty is None else self._penalty(self._model, networks, task)
        return total if term is None else total + times(term, share)


def values_of(losses: Iterable[Tensor]) -> list[float]:
    """Return the values of losses; a GPU is waited for once."""
    return torch.stack([loss.detach() for loss in losses]).tolist()


def times(loss: Tensor, factor: float) -> Tensor:
    """Return loss * factor, which is the loss itself for a factor of 1."""
    return loss if factor == 1 else loss * factor
