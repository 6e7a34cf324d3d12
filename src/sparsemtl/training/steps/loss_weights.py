"""Weights of the tasks' losses in a training step, which a balancer chooses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

import torch
from torch import Tensor

from sparsemtl.balancing import Balancer
from sparsemtl.training.checkpoints.structure import check_state
from sparsemtl.training.steps.finite import not_finite_loss


class LossWeights:
    """Calls a balancer with one row per task, and keeps what it reads of tasks without a label: their last losses.

    Args:
        balancer: the balancer; constant weights are read once.
        tasks: names of the tasks, in the order of the rows.
        device: device of the rows.
    """

    def __init__(self, balancer: Balancer, tasks: Iterable[str], device: torch.device) -> None:
        self._balancer = balancer
        self._tasks = tuple(tasks)
        self._device = device
        self._constant: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def of(self, losses: Mapping[str, float], where: str) -> dict[str, float]:
        """Return the balancer's weight of every task.

        Args:
            losses: task with a label -> its loss; empty for constant weights.
            where: place in the run, for error messages.

        Raises:
            NonFiniteLossError: if a weight is NaN or infinite.
        """
        if self._constant:
            return dict(self._constant)
        self.last.update(losses)
        row = self._balancer.weights(self.row({}), self.flags(losses) if losses else None).tolist()
        weights = dict(zip(self._tasks, row, strict=True))
        for task, weight in weights.items():
            if not isfinite(weight):
                raise not_finite_loss(f"the balancer's weight of task {task!r}", weight, where)
        self._constant = weights if self._balancer.constant else {}
        return weights

    def row(self, losses: Mapping[str, float]) -> Tensor:
        """Return the losses that a balancer reads, (T,); a task without one enters with its last, or with the mean."""
        fallback = sum(self.last.values()) / len(self.last) if self.last else 1.0
        row = [losses.get(task, self.last.get(task, fallback)) for task in self._tasks]
        return torch.tensor(row, device=self._device)

    def flags(self, present: Iterable[str]) -> Tensor:
        """Return which of the tasks are present, bool (T,)."""
        names = set(present)
        return torch.tensor([task in names for task in self._tasks], device=self._device)

    def restore(self, last: Mapping[str, float]) -> None:
        """Restore the last losses of a checkpoint."""
        check_state(last, dict.fromkeys(last, 0.0), "step.last_losses")
        self._constant = {}
        self.last = dict(last)
