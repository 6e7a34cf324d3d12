"""Contract of criteria, which score the weights of a shared network for a task."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparsemtl.tasks.batches import Loaders

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Scores = dict[str, dict[str, Tensor]]
"""Task -> parameter name -> score per weight; the highest are kept."""


class Criterion(abc.ABC):
    """Base of criteria: a score of every maskable weight for every task."""

    #: False for criteria that read the weights alone.
    reads_data: bool = True

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(given)})"

    @abc.abstractmethod
    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Return the scores of the maskable weights of `model`; neither its weights nor its state change.

        Args:
            model: a `MultiTaskModel`.
            loaders: data of the tasks, of which the criterion reads as much as it needs.
            tasks: tasks to score for.
        """
