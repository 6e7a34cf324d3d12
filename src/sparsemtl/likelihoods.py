"""What a network's output says about a label: the distributions under which Fisher information is defined.

A likelihood turns one sample's output z into log p(y|z). The estimators of the diagonal Fisher differ only in the
labels y at which they differentiate it, so each likelihood gives the predicted label, a sampled label, and the
factors of the exact expectation. All of them work on the output alone; the network is the criterion's affair.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class Likelihood(abc.ABC):
    """log p(y | output) of independent samples."""

    #: False if log p has no slope at the most probable label, as for a Gaussian: `fs` then says nothing.
    informative_mode: bool = True

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
        return torch.bernoulli(output.sigmoid(), generator=generator)

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
