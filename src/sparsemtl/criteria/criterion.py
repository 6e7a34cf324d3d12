"""Contract of criteria, which score the weights of a shared network for a task."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.networks.coverage import CoverageOptions, coverage_options
from sparsemtl.registry.parameters import Default
from sparsemtl.tasks.batches import Loaders

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Scores = dict[str, dict[str, Tensor]]
"""Task -> parameter name -> score per weight; the highest are kept."""


class ScoredOptions(CoverageOptions, total=False):
    """Options of all criteria: which parameters they score."""

    mask_all: Annotated[
        bool,
        Default(False),
        Doc("Score every trained shared parameter: biases, norms, embeddings and positions as well."),
    ]


def scored_options(options: ScoredOptions) -> ScoredOptions:
    """Return the options of the scored parameters, patterns checked."""
    return {"mask_all": options["mask_all"], **coverage_options(options)}


class Criterion(abc.ABC):
    """Base of criteria: a score of every maskable weight for every task."""

    #: False for criteria that read the weights alone.
    reads_data: bool = True
    #: Options that say which parameters are scored, for `maskable_parameters`.
    scored: ScoredOptions = ScoredOptions()

    def __repr__(self) -> str:
        shown = (name for name in vars(self) if name not in ("scored", "reads_data") and not name.startswith("_"))
        values = {**{name: getattr(self, name) for name in shown}, **self.scored}
        given = (f"{name}={value!r}" for name, value in values.items())
        return f"{type(self).__name__}({', '.join(given)})"

    def mapped(self, change: Callable[[Criterion], Criterion]) -> Criterion:
        """Return the criterion with a change of what reads the model: of itself, or of the criterion inside it.

        Args:
            change: returns the criterion to use in place of one.
        """
        return change(self)

    def reseeded(self, seed: int) -> Criterion:
        """Return a criterion that draws other random numbers; itself if it draws none."""
        return self

    @abc.abstractmethod
    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Return the scores of the maskable weights of `model`; neither its weights nor its state change.

        Args:
            model: a `MultiTaskModel`.
            loaders: data of the tasks, of which the criterion reads as much as it needs.
            tasks: tasks to score for.
        """
