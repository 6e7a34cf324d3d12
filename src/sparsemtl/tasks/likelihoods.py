"""Likelihoods: distributions of labels given outputs, under which Fisher information is defined.

A likelihood maps the output z of a sample to log p(y|z). The estimators of the diagonal Fisher information differ only
in the labels y at which they differentiate it. Each likelihood therefore has the predicted label, a sampled label and
the factors of the exact expectation. All of them are functions of the output alone.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.tasks.vectors import cosine, unit


class Likelihood(abc.ABC):
    """log p(y | output) of independent samples."""

    #: False if the gradient of log p is zero at the most probable label, as for a Gaussian: `fs` is then all zero.
    informative_mode: bool = True
    #: False if `expected` has too many factors to iterate over: one per pixel or token.
    tractable: bool = True
    #: False if only labels of the data have a score, as for a loss in place of a distribution.
    drawable: bool = True

    def at(self, output: Tensor) -> Likelihood | None:
        """Return the likelihood whose properties above hold for such outputs; None if these do for all outputs."""
        return None

    @abc.abstractmethod
    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the log-probability of every label, shape (B,). Missing labels add zero."""

    @abc.abstractmethod
    def mode(self, output: Tensor) -> Tensor:
        """Return the most probable label of every sample."""

    @abc.abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return one label per sample, drawn from p(. | output)."""

    @abc.abstractmethod
    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the factors of the Fisher information of the output under the model's own labels.

        Yields:
            pairs (weight, direction) of shapes (B,) and output.shape with
            E_y[grad log p(y|z) grad log p(y|z)^T] = sum of weight * direction direction^T.
        """

    @abc.abstractmethod
    def score(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the gradient of each log-probability with respect to its output, shape of `output`.

        `slope(self.log_prob, output, label)` is this gradient by autograd.
        """

    @abc.abstractmethod
    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the score at labels drawn from the model, shape of `output`."""


def slope(log_prob: Callable[[Tensor, Tensor], Tensor], output: Tensor, label: Tensor) -> Tensor:
    """Return the gradient of log-probabilities (B,) with respect to the outputs, shape of `output`."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(leaf, label).sum(), leaf)
    return gradient


class _SampledLikelihood(Likelihood):
    """Base of likelihoods whose sampled score is the score at a sample."""

    def score(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the gradient of each log-probability with respect to its output, shape of `output`."""
        return slope(self.log_prob, output, label)

    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the score at labels drawn from the model, shape of `output`."""
        return self.score(output, self.sample(output, generator))


class Categorical(_SampledLikelihood):
    """Softmax over C classes: outputs are logits (B, C), labels are class indices (B,).

    Args:
        ignore_index: label of samples without one.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return log softmax(output)[label]; an ignored label adds zero."""
        return -F.cross_entropy(output, label, ignore_index=self.ignore_index, reduction="none")

    def mode(self, output: Tensor) -> Tensor:
        """Return the class of the largest logit, ties to the lowest index."""
        return output.argmax(1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a class drawn from the softmax."""
        return torch.multinomial(output.softmax(1), 1, generator=generator).squeeze(1)

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one factor per class: weight p_c, direction e_c - p (FSMTL Eq. 9)."""
        probabilities = output.softmax(1)
        for index in range(output.shape[1]):
            direction = -probabilities
            direction[:, index] += 1
            yield probabilities[:, index], direction


class Bernoulli(_SampledLikelihood):
    """Independent yes/no labels: outputs are logits (B, A), labels 0, 1 or NaN (missing), shape (B, A)."""

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the known attributes of log sigmoid(+-output)."""
        known = ~label.isnan()
        terms = F.binary_cross_entropy_with_logits(output, label.nan_to_num(0.0), reduction="none")
        return -torch.where(known, terms, 0.0).flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return 1 if the logit is positive, else 0."""
        return (output > 0).to(output.dtype)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return 0 or 1 per attribute, drawn independently."""
        return torch.bernoulli(output.detach().sigmoid(), generator=generator)

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one factor per attribute: weight p(1-p), direction e_a. A factors stand for 2^A labels."""
        probabilities = output.sigmoid()
        for index in range(output.shape[1]):
            direction = torch.zeros_like(output)
            direction[:, index] = 1
            yield (probabilities * (1 - probabilities))[:, index], direction


class Gaussian(_SampledLikelihood):
    """Normal distribution of unit variance: outputs are means (B, D), labels real or NaN (missing), shape (B, D)."""

    informative_mode = False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return -|output - label|^2 / 2 over the known dimensions, up to a constant."""
        known = ~label.isnan()
        return -0.5 * torch.where(known, output - label.nan_to_num(0.0), 0.0).square().flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return the mean, at which the score is zero."""
        return output.detach()

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean plus unit normal noise."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output.detach() + noise

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one factor per dimension: weight 1, direction e_d."""
        for index in range(output.shape[1]):
            direction = torch.zeros_like(output)
            direction[:, index] = 1
            yield output.new_ones(len(output)), direction


class _PositionLikelihood(Likelihood):
    """Base of likelihoods of maps and sequences: the log-probability is the sum over the known positions."""

    tractable = False

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise NotImplementedError: the exact factors take a backward pass per position; `sample` estimates them."""
        raise NotImplementedError(f"{type(self).__name__} has too many labels to iterate over. Use `sample`.")


class PositionCategorical(_PositionLikelihood, _SampledLikelihood):
    """Softmax per position: a class per pixel or per token.

    Outputs are logits, (B, C, H, W) or (B, S, C); labels are class indices, (B, H, W) or (B, S).

    Args:
        ignore_index: label of positions without one.
        class_axis: axis of the classes in the outputs.
    """

    def __init__(self, ignore_index: int, class_axis: int = 1) -> None:
        self.ignore_index = ignore_index
        self.class_axis = class_axis

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the known positions of log softmax(output)[label]."""
        logits = output.movedim(self.class_axis, 1)
        terms = F.cross_entropy(logits, label, ignore_index=self.ignore_index, reduction="none")
        return -terms.flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return the class of the largest logit per position, ties to the lowest index."""
        return output.argmax(self.class_axis)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a class per position, drawn from its softmax."""
        positions = output.detach().softmax(self.class_axis).movedim(self.class_axis, -1)
        drawn = torch.multinomial(positions.flatten(0, -2), 1, generator=generator)
        return drawn.view(positions.shape[:-1])


class PixelGaussian(_PositionLikelihood):
    """Normal distribution of unit variance per pixel: outputs are means (B, 1, H, W); labels <= 0 are unknown."""

    informative_mode = False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the known pixels of -(output - label)^2 / 2, up to a constant."""
        return -0.5 * torch.where(label > 0, output - label, 0.0).square().flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return the mean, at which the score is zero."""
        return output.detach()

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean plus unit normal noise per pixel."""
        return output.detach() + self.sampled_score(output, generator)

    def score(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the gradient of each log-probability with respect to its output, shape of `output`."""
        return slope(self.log_prob, output, label)

    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the noise itself, as a drawn label of 0 or less would count as unknown."""
        return torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)


class PixelDirection(_PositionLikelihood, _SampledLikelihood):
    """Von Mises-Fisher distribution of concentration one per pixel: p(n | z) is proportional to exp(cos angle(n, z)).

    Outputs (B, 3, H, W) have any length, labels length one; a label of three zeros is unknown.
    """

    informative_mode = False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the known pixels of the cosine, up to a constant."""
        return cosine(output, label).flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return the direction of the output, at which the score is zero."""
        return unit(output.detach())

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return unit vectors, drawn by the inverse distribution function of the cosine, uniformly around the axis."""
        axis = self.mode(output)
        options: Any = {"generator": generator, "dtype": output.dtype, "device": output.device}
        uniform = torch.rand(axis[:, :1].shape, **options)
        cosine = 1 + (uniform + (1 - uniform) * math.exp(-2)).log()
        around = torch.randn(axis.shape, **options)
        around = unit(around - (around * axis).sum(1, keepdim=True) * axis)
        return cosine * axis + (1 - cosine.square()).clamp(min=0).sqrt() * around
