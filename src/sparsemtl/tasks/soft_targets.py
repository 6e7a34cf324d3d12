"""Soft targets: distance of a network's outputs from another one's, by the distribution that they stand for."""

from __future__ import annotations

from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import kl_divergence

from sparsemtl.errors import ParameterError
from sparsemtl.tasks.likelihoods import Bernoulli, Categorical, Likelihood, PixelDirection, PositionCategorical
from sparsemtl.tasks.own_likelihoods import DistributionLikelihood
from sparsemtl.tasks.task import Task
from sparsemtl.tasks.vectors import cosine


def soft_loss(task: Task, output: Tensor, soft: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Return the mean distance of outputs from soft targets over the known labels, a scalar; zero if none is known.

    Args:
        task: the task, by whose likelihood distances are measured; see `soft_terms`.
        output: outputs of the head, (B, ...).
        soft: outputs of the teacher, of the same shape.
        label: labels that `Task.labels` returned; their values are not read, only which of them are known.
        temperature: divisor of logits, above 0.

    Raises:
        ParameterError: if the teacher's outputs have another shape.
    """
    if output.shape != soft.shape:
        raise ParameterError(
            f"task {task.name!r}: the teacher's outputs have shape {tuple(soft.shape)}, those of the trained network "
            f"{tuple(output.shape)}; expected the same."
        )
    terms, known = _known_terms(task, output, soft, label, temperature)
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)


def soft_weight(task: Task, soft: Tensor, label: Tensor) -> float:
    """Return the number of distances that `soft_loss` is the mean of.

    Args:
        task: the task.
        soft: outputs of the teacher.
        label: labels that `Task.labels` returned.
    """
    return float(_known_terms(task, soft, soft, label, temperature=1.0)[1].sum())


def _known_terms(task: Task, output: Tensor, soft: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the distances of outputs from soft targets, and a bool of the same shape: those with a known label."""
    known = task.known_outputs(label, output)
    dtype = torch.promote_types(output.dtype, torch.float32)
    output, soft = (torch.where(known, each.to(dtype), 0.0) for each in (output, soft))
    terms = soft_terms(task.likelihood, output, soft, temperature)
    for axis, size in enumerate(terms.shape):
        known = known.any(axis, keepdim=True) if size == 1 else known
    return terms, known.expand_as(terms)


@singledispatch
def soft_terms(likelihood: Likelihood, output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Return distances of outputs from soft targets: of their shape, or with 1 on an axis that is summed over.

    Of classes it is the Kullback-Leibler divergence KL(soft, output) of the softmax of logits / temperature, times
    temperature^2 (Hinton et al. 2015); of yes and no likewise; of directions 1 - cosine; of distributions of torch
    their divergence. Of all else it is the squared error over the variance of the soft targets in the batch. Register
    a function for a likelihood of your own: `soft_terms.register`.

    Args:
        likelihood: distribution that the outputs stand for.
        output: outputs of the head, (B, ...).
        soft: outputs of the teacher, of the same shape.
        temperature: divisor of logits, above 0.
    """
    axes = [axis for axis in range(soft.ndim) if axis != 1]
    variance = soft.var(axes, correction=0, keepdim=True)
    return (output - soft).square() / torch.where(variance > 0, variance, 1.0)


@soft_terms.register
def _(likelihood: Categorical, output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    return _divergence(output, soft, temperature, axis=1)


@soft_terms.register
def _(likelihood: PositionCategorical, output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    return _divergence(output, soft, temperature, axis=likelihood.class_axis)


@soft_terms.register
def _(likelihood: Bernoulli, output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    p = (soft / temperature).sigmoid()
    own, least = (F.binary_cross_entropy_with_logits(z / temperature, p, reduction="none") for z in (output, soft))
    return (own - least) * temperature**2


@soft_terms.register
def _(likelihood: PixelDirection, output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    return 1 - cosine(output, soft).unsqueeze(1)


@soft_terms.register
def _(likelihood: DistributionLikelihood, output: Tensor, soft: Tensor, temperature: float) -> Tensor:
    try:
        terms = kl_divergence(likelihood.distribution(soft), likelihood.distribution(output))
    except NotImplementedError:  # torch has no closed form for it
        return soft_terms.dispatch(Likelihood)(likelihood, output, soft, temperature)
    return terms.reshape(len(output), -1).sum(1).view(-1, *[1] * (output.ndim - 1))


def _divergence(output: Tensor, soft: Tensor, temperature: float, *, axis: int) -> Tensor:
    """Return KL(soft, output) of the softmax of logits / temperature, times temperature^2, with 1 on the axis."""
    log_p, log_q = ((z / temperature).log_softmax(axis) for z in (soft, output))
    p = log_p.exp()  # 0 for classes that the teacher excludes by a logit of minus infinity
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(axis, keepdim=True) * temperature**2
