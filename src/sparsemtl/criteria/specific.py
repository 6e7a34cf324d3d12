"""Task-specific scores: high where a weight matters to this task and not to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.criterion import Criterion, ScoredOptions, Scores, scored_options
from sparsemtl.criteria.power_sum import wide
from sparsemtl.criteria.registered import as_criterion
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks.batches import Loaders

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class Specific(Criterion):
    """Task-specific scores: those of another criterion, times the squared share of the task among all tasks.

    F_t(w) is the inner criterion's score of weight w for task t, divided by the mean of t's scores over all weights, so
    that tasks compare. The score is

        F_t(w) (F_t(w) / sum_s F_s(w))^2,

    the sum over all tasks: a weight that only this task is sensitive to keeps its score, one that T tasks are equally
    sensitive to gets 1 / T^2 of it. Masks of unrelated tasks then overlap less than by the inner criterion. The ranking
    of a task on its own is that of the inner criterion.

    Attributes:
        of: the inner criterion.

    Examples:
        >>> masks = choose_masks(Specific(of="fisher"), model, loader, keep=0.1)    # doctest: +SKIP
        >>> sharing = FisherSharing(keep=0.1, criterion="specific")                 # doctest: +SKIP
    """

    @validated
    def __init__(
        self,
        *,
        of: Annotated[
            str | Mapping[str, Any] | Criterion,
            Doc("Inner criterion, of scores of at least 0: a name, or a mapping of `name` and parameters."),
        ] = "fisher",
        **scored: Unpack[ScoredOptions],
    ) -> None:
        if isinstance(of, Criterion) and any(scored.values()):
            raise ParameterError(
                f"`only`, `exclude` and `mask_all` of Specific are for an inner criterion that is named; {of!r} has "
                "its own. Give them to it."
            )
        self.of: Criterion = as_criterion(of, **scored_options(scored))
        self.scored = self.of.scored
        self.reads_data = self.of.reads_data

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Return the scores of all tasks; shares are among these tasks.

        Raises:
            MaskError: if a score of the inner criterion is below 0.
        """
        scaled = {task: _scaled(scores, task) for task, scores in self.of.scores(model, loaders, tasks).items()}
        totals: dict[str, Tensor] = {}
        for scores in scaled.values():
            for name, score in scores.items():
                totals[name] = totals[name] + score if name in totals else score
        return {
            task: {name: score * (score / _nonzero(totals[name])).square_() for name, score in scores.items()}
            for task, scores in scaled.items()
        }


def _scaled(scores: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Return scores of mean 1; zeros if all are zero."""
    for name, score in scores.items():
        if score.numel() and float(score.amin()) < 0:
            raise MaskError(
                f"task {task!r}, parameter {name!r}: Specific needs scores of at least 0, and some are below."
            )
    size = sum(score.numel() for score in scores.values())
    total = sum(float(score.sum(dtype=torch.float64)) for score in scores.values())
    mean = total / size if total else 1.0
    return {name: score.to(wide(score.dtype)) / mean for name, score in scores.items()}


def _nonzero(total: Tensor) -> Tensor:
    """Return a sum of scores with the smallest number in place of 0, where every score is 0."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)
