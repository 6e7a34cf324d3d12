"""Scores of the dense network, when only its sub-networks have been trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from sparsemtl.criteria.criterion import Criterion, Scores, map_innermost
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.norms import Statistics, statistics_for
from sparsemtl.networks.recomputed_norms import dense_statistics
from sparsemtl.tasks.batches import Loaders, groups_for, per_task
from sparsemtl.tasks.shards import processes_of, sharded

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


def with_recomputed_batch_norm(criterion: Criterion, *, samples: int = 1024) -> Criterion:
    """Return a criterion that scores with batch-norm statistics of the dense network.

    Per-task sub-networks have statistics of their own, and none of them is the dense network's. The returned criterion
    estimates the dense network's statistics from the data before `criterion` scores, and drops them afterwards.

    Args:
        criterion: scores the weights.
        samples: number of samples to estimate the statistics from.
    """
    return map_innermost(criterion, partial(_WithRecomputedBatchNorm, samples=samples))


def for_dense_network(criterion: Criterion, model: MultiTaskModel, statistics: Statistics | None) -> Criterion:
    """Return a criterion that scores the dense network: with its batch-norm statistics where the model has others.

    Args:
        criterion: scores the weights.
        model: the model, whose own statistics are those of the dense network if tasks share them.
        statistics: whose statistics the tasks use, as asked for; see `statistics_for`.
    """
    shared = statistics_for(model, statistics) == "shared"
    return criterion if shared else with_recomputed_batch_norm(criterion)


class _WithRecomputedBatchNorm(Criterion):
    """See `with_recomputed_batch_norm`."""

    def __init__(self, criterion: Criterion, samples: int) -> None:
        self.criterion = criterion
        self.samples = samples
        self.scored = criterion.scored

    def __repr__(self) -> str:
        return f"with_recomputed_batch_norm({self.criterion!r}, samples={self.samples})"

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Estimate the statistics on the tasks' data, then score; tasks with data or networks of their own in turn."""
        if not isinstance(model, MultiTaskModel) or not self.criterion.reads_data:
            return self.criterion.scores(model, loaders, tasks)
        scores: Scores = {}
        apart = per_task(loaders) or model.norms_per_task
        for together in [[task] for task in tasks] if apart else [tasks]:
            inputs = self._inputs(model, loaders, together[0])
            with dense_statistics(model, inputs, together[0].name, processes_of(loaders)):
                scores.update(self.criterion.scores(model, loaders, together))
        return scores

    def _inputs(self, model: nn.Module, loaders: Loaders, task: Task) -> Iterator[Any]:
        device, dtype = placement(model)
        processes = processes_of(loaders)
        seen = 0
        for group in groups_for(sharded(loaders), task):
            own = len(task.labels(group.targets)) if group.tasks else 0
            if own:
                yield group.to(device, dtype).x
            seen += int(processes.numbers([own]).sum()) if processes.several else own
            if seen >= self.samples:
                return
