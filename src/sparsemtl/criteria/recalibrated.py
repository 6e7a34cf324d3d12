"""A criterion that looks at the dense network, when only its sub-networks have been trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from sparsemtl.criteria.criterion import Criterion, Scores
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.norms import recalibrated
from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import Loaders, groups_for, per_task


class Recalibrated(Criterion):
    """Another criterion, taken with batch norm statistics of the dense network.

    Per-task sub-networks have statistics of their own, and none of them is the dense network's. They are estimated
    from the data before the criterion looks, and forgotten afterwards.

    Args:
        criterion: what scores.
        samples: samples to estimate the statistics from.
    """

    def __init__(self, criterion: Criterion, *, samples: int = 1024) -> None:
        self.criterion = criterion
        self.samples = samples

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Estimate the statistics on the tasks' data, then score; tasks with data of their own one by one."""
        if not isinstance(model, MultiTaskModel) or not self.criterion.reads_data:
            return self.criterion.scores(model, loaders, tasks)
        scores: Scores = {}
        for together in [[task] for task in tasks] if per_task(loaders) else [tasks]:
            with recalibrated(model, self._inputs(model, loaders, together[0]), together[0].name):
                scores.update(self.criterion.scores(model, loaders, together))
        return scores

    def _inputs(self, model: nn.Module, loaders: Loaders, task: Task) -> Iterator[Any]:
        device, dtype = placement(model)
        seen = 0
        for group in groups_for(loaders, task):
            yield group.to(device, dtype).x
            seen += len(task.labels(group.targets))
            if seen >= self.samples:
                return
