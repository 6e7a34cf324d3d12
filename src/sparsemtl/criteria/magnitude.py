"""Magnitude: large weights matter, whatever the task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparsemtl.criteria.criterion import Criterion, Scores
from sparsemtl.networks.model import maskable_parameters
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import Loaders


class Magnitude(Criterion):
    """|weight|, the same for every task of a shared network (Han et al. 2015).

    Args:
        mask_all: also score biases and norms.
    """

    reads_data = False

    @validated
    def __init__(self, *, mask_all: bool = False) -> None:
        self.mask_all = mask_all

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Read the weights; no data is read."""
        parameters = maskable_parameters(model, mask_all=self.mask_all)
        return {task.name: {n: p.detach().abs() for n, p in parameters.items()} for task in tasks}
