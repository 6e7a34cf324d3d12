"""Contract of criteria, which score the weights of a shared network for a task."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Protocol, runtime_checkable

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
    #: Criterion inside a criterion that composes, None in all others.
    of: Criterion | None = None

    def __repr__(self) -> str:
        shown = (name for name in vars(self) if name not in ("scored", "reads_data") and not name.startswith("_"))
        values = {**{name: getattr(self, name) for name in shown}, **self.scored}
        given = (f"{name}={value!r}" for name, value in values.items())
        return f"{type(self).__name__}({', '.join(given)})"

    @abc.abstractmethod
    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Return the scores of the maskable weights of `model`; neither its weights nor its state change.

        Args:
            model: a `MultiTaskModel`.
            loaders: data of the tasks, of which the criterion reads as much as it needs.
            tasks: tasks to score for.
        """


@runtime_checkable
class Reseedable(Protocol):
    """Criterion that draws random numbers anew for every choice of masks."""

    def reseeded(self, seed: int) -> Criterion:
        """Return a criterion that draws other random numbers."""


def map_innermost(criterion: Criterion, change: Callable[[Criterion], Criterion]) -> Criterion:
    """Return a criterion with a change of the criterion that reads the model: itself, or the innermost in it."""
    if criterion.of is None:
        return change(criterion)
    outer = copy.copy(criterion)
    outer.of = map_innermost(criterion.of, change)
    return outer
