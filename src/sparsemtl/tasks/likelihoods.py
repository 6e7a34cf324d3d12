"""What a network's output says about a label: the distributions under which Fisher information is defined.

A likelihood turns one sample's output z into log p(y|z). The estimators of the diagonal Fisher differ only in the
labels y at which they differentiate it, so each likelihood gives the predicted label, a sampled label, and the
factors of the exact expectation. All of them work on the output alone; the network is the criterion's affair.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.tasks.vectors import cosine, unit


class Likelihood(abc.ABC):
    """log p(y | output) of independent samples."""

    #: False if log p has no slope at the most probable label, as for a Gaussian: `fs` then says nothing.
    informative_mode: bool = True
    #: False if `expected` has too many factors to go through: one a pixel.
    tractable: bool = True

    @abc.abstractmethod
    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Log-probability of every sample's label, shape (B,). Missing labels add zero."""

    @abc.abstractmethod
    def mode(self, output: Tensor) -> Tensor:
        """The most probable label of every sample."""

    @abc.abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One label of every sample, drawn from p(. | output)."""

    @abc.abstractmethod
    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Factors of the Fisher information of the output under the model's own labels.

        Yields:
            pairs (weight, direction) of shapes (B,) and output.shape with
            E_y[grad log p(y|z) grad log p(y|z)^T] = sum of weight * direction direction^T.
        """

    def score(self, output: Tensor, label: Tensor) -> Tensor:
        """Gradient of each sample's log-probability with respect to its output, shape of `output`."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(leaf, label).sum(), leaf)
        return gradient

    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The score at labels drawn from the model, shape of `output`."""
        return self.score(output, self.sample(output, generator))


class Categorical(Likelihood):
    """Softmax over C classes: outputs are logits (B, C), labels are class indices (B,).

    Args:
        ignore_index: the label of a sample that has none.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """log softmax(output)[label]; an ignored label adds zero."""
        return -F.cross_entropy(output, label, ignore_index=self.ignore_index, reduction="none")

    def mode(self, output: Tensor) -> Tensor:
        """The class of the largest logit, ties to the lowest index."""
        return output.argmax(1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A class drawn from the softmax."""
        return torch.multinomial(output.softmax(1), 1, generator=generator).squeeze(1)

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One factor per class: weight p_c, direction e_c - p (FSMTL Eq. 9)."""
        probabilities = output.softmax(1)
        for index in range(output.shape[1]):
            direction = -probabilities
            direction[:, index] += 1
            yield probabilities[:, index], direction


class Bernoulli(Likelihood):
    """Independent yes/no labels: outputs are logits (B, A), labels 0, 1 or NaN (missing), shape (B, A)."""

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Sum over the known attributes of log sigmoid(+-output)."""
        known = ~label.isnan()
        terms = F.binary_cross_entropy_with_logits(output, label.nan_to_num(0.0), reduction="none")
        return -torch.where(known, terms, 0.0).flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """1 where the logit is positive."""
        return (output > 0).to(output.dtype)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Every attribute drawn on its own."""
        return torch.bernoulli(output.detach().sigmoid(), generator=generator)

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One factor per attribute: weight p(1-p), direction e_a; A factors do for 2^A labels."""
        probabilities = output.sigmoid()
        for index in range(output.shape[1]):
            direction = torch.zeros_like(output)
            direction[:, index] = 1
            yield (probabilities * (1 - probabilities))[:, index], direction


class Gaussian(Likelihood):
    """Unit-variance normal: outputs are means (B, D), labels real or NaN (missing), shape (B, D)."""

    informative_mode = False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """-|output - label|^2 / 2 over the known dimensions, up to a constant."""
        known = ~label.isnan()
        return -0.5 * torch.where(known, output - label.nan_to_num(0.0), 0.0).square().flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """The mean itself, at which the score is zero."""
        return output.detach()

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean plus unit normal noise."""
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output.detach() + noise

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One factor per dimension: weight 1, direction e_d."""
        for index in range(output.shape[1]):
            direction = torch.zeros_like(output)
            direction[:, index] = 1
            yield output.new_ones(len(output)), direction


class PixelLikelihood(Likelihood):
    """Independent labels at the pixels of a map: the log-probability of a map is the sum over its known pixels."""

    tractable = False

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Refuse: every pixel would take backwards of its own. Draws of `sample` estimate the same without bias."""
        raise NotImplementedError(f"{type(self).__name__} has too many labels to go through; draw some by `sample`.")


class PixelCategorical(PixelLikelihood):
    """Softmax at every pixel: outputs are logits (B, C, H, W), labels class indices (B, H, W).

    Args:
        ignore_index: the label of a pixel that has none.
    """

    def __init__(self, ignore_index: int) -> None:
        self.ignore_index = ignore_index

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Sum over the known pixels of log softmax(output)[label]."""
        terms = F.cross_entropy(output, label, ignore_index=self.ignore_index, reduction="none")
        return -terms.flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """The class of the largest logit at every pixel, ties to the lowest index."""
        return output.argmax(1)

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A class at every pixel, drawn from its softmax."""
        pixels = output.detach().softmax(1).movedim(1, -1)
        drawn = torch.multinomial(pixels.flatten(0, -2), 1, generator=generator)
        return drawn.view(pixels.shape[:-1])


class PixelGaussian(PixelLikelihood):
    """Unit-variance normal at every pixel: outputs are means (B, 1, H, W), labels likewise; 0 or less is unknown."""

    informative_mode = False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Sum over the known pixels of -(output - label)^2 / 2, up to a constant."""
        return -0.5 * torch.where(label > 0, output - label, 0.0).square().flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """The mean itself, at which the score is zero."""
        return output.detach()

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean plus unit normal noise, at every pixel."""
        return output.detach() + self.sampled_score(output, generator)

    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The noise itself; a drawn label of 0 or less would pass for an unknown one."""
        return torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)


class PixelDirection(PixelLikelihood):
    """Von Mises-Fisher of concentration one at every pixel: p(n | z) is proportional to exp(cos of their angle).

    Outputs (B, 3, H, W) have any length, labels have length one; a label of three zeros is unknown.
    """

    informative_mode = False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Sum over the known pixels of the cosine, up to a constant."""
        return cosine(output, label).flatten(1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """The output's own direction, at which the score is zero."""
        return unit(output.detach())

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Unit vectors: the cosine by inverting its distribution function, around the axis uniformly."""
        axis = self.mode(output)
        options: Any = {"generator": generator, "dtype": output.dtype, "device": output.device}
        uniform = torch.rand(axis[:, :1].shape, **options)
        cosine = 1 + (uniform + (1 - uniform) * math.exp(-2)).log()
        around = torch.randn(axis.shape, **options)
        around = unit(around - (around * axis).sum(1, keepdim=True) * axis)
        return cosine * axis + (1 - cosine.square()).clamp(min=0).sqrt() * around
