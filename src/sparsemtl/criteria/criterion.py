"""The contract of criteria: what ranks the weights of a shared network for a task."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import Loaders

Scores = dict[str, dict[str, Tensor]]
"""Task -> parameter name -> score of every weight, higher is kept."""


class Criterion(abc.ABC):
    """Scores every maskable weight for every task."""

    #: False for criteria that look at the weights alone.
    reads_data: bool = True

    @abc.abstractmethod
    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Score the maskable weights of `model`; neither its weights nor its state change.

        Args:
            model: a `MultiTaskModel`.
            loaders: data of the tasks, of which as much is read as the criterion needs.
            tasks: the tasks to score for.
        """
