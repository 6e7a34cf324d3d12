"""Metrics of tasks, kept for the next evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.task_cache import TaskCache

if TYPE_CHECKING:
    from torchmetrics.metric import Metric

_METRICS: TaskCache[tuple[torch.device, dict[str, Metric]]] = TaskCache()
"""Device and metrics of each task, without a state."""


def take_metrics(task: Task, device: torch.device) -> dict[str, Metric]:
    """Return metrics of a task: those that were kept, or new ones.

    Raises:
        ParameterError: as `Task.metrics`.
    """
    where, metrics = _METRICS.take(task) or (None, {})
    if where == device:
        return metrics
    return {name: metric.to(device) for name, metric in task.metrics().items()}


def keep_metrics(task: Task, device: torch.device, metrics: dict[str, Metric]) -> None:
    """Keep metrics of a task, which were reset."""
    _METRICS.keep(task, (device, metrics))
