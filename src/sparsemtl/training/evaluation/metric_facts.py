"""Names and directions of a task's metrics, kept per task: making the metrics takes as long as a small evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.task_cache import TaskCache
from sparsemtl.training.evaluation.task_metrics import keep_metrics, take_metrics

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


@dataclass(frozen=True)
class MetricFacts:
    """Facts of a task's metrics.

    Attributes:
        directions: name of every metric, the primary one first -> True if higher is better.
        origin: value that the divisor of the primary metric's changes is measured from: 0, or 1 if a constant
            prediction has the value 0.
    """

    directions: Mapping[str, bool]
    origin: float

    @property
    def primary(self) -> str:
        """Name of the primary metric."""
        return next(iter(self.directions))


_FACTS: TaskCache[MetricFacts] = TaskCache()
_CPU = torch.device("cpu")


def metric_facts(task: Task) -> MetricFacts:
    """Return the facts of a task's metrics; they are found anew if the task was changed since.

    Raises:
        ParameterError: as `Task.metrics`.
    """
    facts = _FACTS.take(task)
    if facts is None:
        metrics = take_metrics(task, _CPU)
        directions = {name: bool(metric.higher_is_better) for name, metric in metrics.items()}
        facts = MetricFacts(directions, _origin(next(iter(metrics.values()))))
        keep_metrics(task, _CPU, metrics)
    _FACTS.keep(task, facts)
    return facts


def _origin(metric: Metric) -> float:
    from torchmetrics.regression import ExplainedVariance, R2Score

    from sparsemtl.tasks.metrics.value_metrics import KnownR2

    return 1.0 if isinstance(metric, (ExplainedVariance, KnownR2, R2Score)) else 0.0
