"""Means of Fisher information over the labelled samples of tasks, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsemtl.errors import LabelError
from sparsemtl.tasks.batches import Group
from sparsemtl.tasks.own_likelihoods import LossLikelihood
from sparsemtl.tasks.processes import Processes

if TYPE_CHECKING:
    from sparsemtl.criteria.estimators import Estimator
    from sparsemtl.tasks.task import Task


@dataclass
class FisherMean:
    """Mean over the labelled samples of one task while it is computed.

    Attributes:
        task: the task.
        limit: labelled samples to take, all if None.
        generator: generator of drawn labels.
        estimator: labels of the gradients, chosen at the first outputs.
        replaced: reason why the estimator is not the one that was asked for; "" if it is.
        decided: the estimator is final.
        totals: parameter name -> sum so far.
        seen: samples so far.
        label: labels (B, ...) of the present batch.
        counts: samples of the batch that count, bool (B,).
    """

    task: Task
    limit: int | None
    generator: torch.Generator
    estimator: Estimator = "true"
    replaced: str = ""
    decided: bool = False
    totals: dict[str, Tensor] = field(default_factory=dict)
    seen: int = 0
    label: Tensor = field(default_factory=lambda: torch.empty(0))
    counts: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def done(self) -> bool:
        """True if no further sample counts."""
        return self.limit is not None and self.seen >= self.limit

    @property
    def left(self) -> int | None:
        """Samples still to take; None without a limit."""
        return None if self.limit is None else self.limit - self.seen

    def read(self, targets: Mapping[str, Tensor]) -> int:
        """Read a batch's labels; return the number of samples that are labelled."""
        self.label = self.task.labels(targets)
        self.counts = self.task.labelled(self.label)
        return int(self.counts.sum())

    def take(self, count: int) -> bool:
        """Let the first labelled samples count alone; return False if there is none."""
        self.counts = self.counts & (self.counts.cumsum(0) <= count)
        return count > 0

    def known(self, output: Tensor) -> Tensor:
        """Return a mask that broadcasts to the outputs (B, ...): those of known labels, of samples that count."""
        counts = self.counts.view(-1, *[1] * (output.ndim - 1))
        return counts & self.task.known_outputs(self.label, output)

    def score(self, output: Tensor) -> Tensor:
        """Return the score at the labels of the data, shape of `output`; of a loss, among the samples that count."""
        likelihood, rows = self.task.likelihood, self.counts
        if not isinstance(likelihood, LossLikelihood) or bool(rows.all()):
            return likelihood.score(output, self.label)
        scores = torch.zeros_like(output)
        scores[rows] = likelihood.score(output[rows], self.label[rows])
        return scores

    def scores(self) -> dict[str, Tensor]:
        """Return parameter name -> mean."""
        if not self.seen:
            raise LabelError(
                f"task {self.task.name!r} has no labelled sample to take its Fisher information on. "
                "Leave the task out, or use data with labels of it."
            )
        scores = {}
        for name in list(self.totals):  # one by one, for all tasks' totals are larger than the model
            mean = self.totals.pop(name).div_(self.seen)
            scores[name] = mean.clamp_(min=0).contiguous()  # pairs of positions may round below zero
        return scores


def take_batch(means: Sequence[FisherMean], group: Group, processes: Processes) -> list[FisherMean]:
    """Read a batch's labels; return the means for which some of them count, among those of all processes."""
    open_means = [mean for mean in means if not mean.done]
    own = [mean.read(group.targets) if group.tasks else 0 for mean in open_means]
    counted, totals = processes.limited(own, [mean.left for mean in open_means])
    for mean, total in zip(open_means, totals, strict=True):
        mean.seen += total
    return [mean for mean, count in zip(open_means, counted, strict=True) if count and mean.take(count)]
