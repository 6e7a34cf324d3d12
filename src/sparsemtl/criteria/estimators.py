"""Estimators of Fisher information: the labels at which gradients are taken, and the weights of their powers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from sparsemtl.criteria.fisher_mean import FisherMean
from sparsemtl.criteria.power_sum import Power, wide
from sparsemtl.errors import NonFiniteScoreError, ParameterError
from sparsemtl.tasks.own_likelihoods import LossLikelihood

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Estimator = Literal["fs", "efs", "true", "sample", "batch"]


def estimator_for(asked: Estimator, mean: FisherMean, output: Tensor) -> tuple[Estimator, str]:
    """Return the estimator to use for a task, and the reason why it is not the one asked for; "" if it is.

    Falls back to `efs` (or `sample`, where `efs` would need one backward pass per pixel and label) if `fs` is
    identically zero for the task's likelihood, and to `true` if a loss takes the place of a likelihood.

    Args:
        asked: the estimator asked for.
        mean: mean of the task, with the labels of a batch.
        output: the task's outputs for the batch.

    Raises:
        ParameterError: if outputs do not fit the kind's own likelihood, or a loss ties the samples of a batch
            together and the estimator needs them apart.
    """
    task = mean.task
    if not task.has_own_likelihood:
        _check_form(task, output, mean.label)
    likelihood = task.likelihood
    likelihood = likelihood.at(output) or likelihood
    if isinstance(likelihood, LossLikelihood):
        return _estimator_for_loss(asked, mean, output, likelihood)
    kind = type(likelihood).__name__
    exact: Estimator = "efs" if likelihood.tractable else "sample"
    if asked == "fs" and not likelihood.informative_mode:
        why = f"a {kind} has no slope at its own prediction, so estimator='fs' would score every weight zero"
    elif asked == "efs" and not likelihood.tractable:
        why = f"estimator='efs' takes a backward for every label of every pixel of a {kind}"
    else:
        return asked, ""
    return exact, f"{why}; using {exact!r}."


def _estimator_for_loss(
    asked: Estimator, mean: FisherMean, output: Tensor, likelihood: LossLikelihood
) -> tuple[Estimator, str]:
    if asked in ("true", "batch"):
        return asked, ""
    rows = mean.counts
    if likelihood.couples_samples(output[rows].to(wide(output.dtype)), mean.label[rows]):
        raise ParameterError(
            f"task {mean.task.name!r}: its loss depends on pairs of samples or on the whole batch, so that a sample "
            f"has no loss of its own, and estimator={asked!r} no meaning. estimator='true' takes each sample's part in "
            "the gradient of its batch's loss, 'batch' the squared gradient of the batch's loss; both depend on the "
            "batch size. Or pass `likelihood` to the task."
        )
    return "true", (
        "the loss is no distribution that labels could be drawn from; using estimator='true', the squared gradient "
        "of each sample's loss at its label (empirical Fisher information). Or pass `likelihood` to the task."
    )


class TermOptions(NamedTuple):
    """Options of the terms.

    Attributes:
        power: power of the gradients that is averaged.
        draws: labels that `sample` draws per sample.
    """

    power: Power
    draws: int


Terms = Iterator[tuple[Tensor, Tensor]]
"""Pairs of weights (B,) of powers, and the gradients at the output (B, ...) that they weigh."""


def _predicted(mean: FisherMean, output: Tensor, options: TermOptions) -> Terms:
    likelihood = mean.task.likelihood
    yield output.new_ones(len(output)), likelihood.score(output, likelihood.mode(output))


def _expected(mean: FisherMean, output: Tensor, options: TermOptions) -> Terms:
    return mean.task.likelihood.expected(output)


def _drawn(mean: FisherMean, output: Tensor, options: TermOptions) -> Terms:
    _check_outputs(mean.task, output)
    one = output.new_ones(len(output))
    for _ in range(options.draws):
        yield one / options.draws, mean.task.likelihood.sampled_score(output, mean.generator)


def _at_labels(mean: FisherMean, output: Tensor, options: TermOptions) -> Terms:
    yield output.new_ones(len(output)), mean.score(output)


def _of_batch(mean: FisherMean, output: Tensor, options: TermOptions) -> Terms:
    """Yield the gradients of n samples, whose sum's power over n is n times the power of their mean."""
    n = mean.counts.sum() if options.power == "square" else 1
    yield output.new_ones(len(output)) / n, mean.score(output)


TERMS: Mapping[Estimator, Callable[[FisherMean, Tensor, TermOptions], Terms]] = {
    "fs": _predicted,
    "efs": _expected,
    "sample": _drawn,
    "true": _at_labels,
    "batch": _of_batch,
}
"""Estimator -> function of the mean of a task and its outputs (B, ...) that yields the terms of a batch."""


def _check_form(task: Task, output: Tensor, label: Tensor) -> None:
    """Raise unless outputs have the form that the kind's own likelihood reads."""
    try:
        task.check_output(output, label)
    except ParameterError as error:
        raise ParameterError(
            f"{error} For outputs of another form, Fisher information needs the task's `likelihood`: a function of the "
            "outputs that returns a torch.distributions.Distribution, or 'loss'."
        ) from error


def _check_outputs(task: Task, output: Tensor) -> None:
    """Raise unless labels can be drawn; scores of the other estimators show by themselves that training diverged."""
    wrong = int((output.isnan() | (output == torch.inf)).sum())
    if wrong:
        raise NonFiniteScoreError(
            f"task {task.name!r}: {wrong} of {output.numel()} outputs are NaN or infinite, so that no label can be "
            "drawn. Did training diverge?"
        )
