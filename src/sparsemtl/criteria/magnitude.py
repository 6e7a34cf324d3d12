"""Magnitude: the largest weights, the same for every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn
from typing_extensions import Unpack

from sparsemtl.criteria.criterion import Criterion, ScoredOptions, Scores, scored_options
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks.batches import Loaders

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class Magnitude(Criterion):
    """Absolute value of the weight, the same for every task of a shared network (Han et al. 2015)."""

    reads_data = False

    @validated
    def __init__(self, **scored: Unpack[ScoredOptions]) -> None:
        self.scored = scored_options(scored)

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Return the absolute weights; no data is read."""
        parameters = maskable_parameters(model, **self.scored)
        magnitudes = {name: p.detach().abs() for name, p in parameters.items()}
        return {task.name: dict(magnitudes) for task in tasks}
