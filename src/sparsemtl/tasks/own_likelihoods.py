"""Likelihoods of the user's own: distributions of torch.distributions, and losses in place of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution

from sparsemtl.errors import ParameterError
from sparsemtl.tasks.likelihoods import Likelihood, slope

DistributionOf = Callable[[Tensor], Distribution]
"""Outputs (B, ...) -> distribution of the labels (B, ...)."""


class DistributionLikelihood(Likelihood):
    """Distribution of labels given outputs, as torch.distributions has them.

    Args:
        task: name of the task, for messages.
        distribution: outputs (B, ...) -> distribution of labels (B, ...), independent along the first axis.
        known: labels (B, ...) -> mask of the known ones, of their shape or (B,).
    """

    def __init__(self, task: str, distribution: DistributionOf, known: Callable[[Tensor], Tensor]) -> None:
        self._task = task
        self._distribution = distribution
        self._known = known

    def at(self, output: Tensor) -> DistributionLikelihood:
        """Return the likelihood with the properties of its distribution at such outputs.

        A continuous density has no slope at its mode. Labels of a sample can be enumerated if they are one finite
        label.
        """
        found = self.distribution(output)
        own = DistributionLikelihood(self._task, self._distribution, self._known)
        own.informative_mode = found.support is not None and bool(found.support.is_discrete)
        own.tractable = found.has_enumerate_support and tuple(found.batch_shape) == (len(output),)
        return own

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the log-probability of every label, (B,). Missing ones add zero; of a vector, any missing part."""
        found = self.distribution(output)
        known = self._known(label)
        known = known.view(*known.shape, *[1] * (label.ndim - known.ndim)).expand(label.shape)
        if label.is_floating_point():
            known = known & ~label.isnan()
        shape = torch.Size((*found.batch_shape, *found.event_shape))
        if label.shape != shape and label.numel() == shape.numel():
            label, known = label.view(shape), known.reshape(shape)
        if not bool(known.all()):
            label = torch.where(known, label, self._sample(found, output, 0).to(label.dtype))
        terms = found.log_prob(label)
        if terms.shape[:1] != output.shape[:1]:
            raise ParameterError(
                f"task {self._task!r}: its likelihood has log-probabilities of shape {tuple(terms.shape)} for "
                f"{len(output)} samples; expected ({len(output)}, ...)."
            )
        known = known.flatten(terms.ndim).all(-1) if known.ndim > terms.ndim else known
        return torch.where(known, terms, 0.0).view(len(terms), -1).sum(1)

    def mode(self, output: Tensor) -> Tensor:
        """Return the most probable label of every sample."""
        return self.distribution(output.detach()).mode

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return one label per sample; the global generator is left as it was."""
        seed = torch.randint(2**62, (), generator=generator, device=generator.device if generator else None)
        return self._sample(self.distribution(output.detach()), output, int(seed))

    def _sample(self, distribution: Distribution, output: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if output.is_cuda else []):
            if output.is_cuda:
                torch.cuda.manual_seed_all(seed)
            else:
                torch.default_generator.manual_seed(seed)
            return distribution.sample()

    def score(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the gradient of each log-probability with respect to its output, shape of `output`."""
        return slope(self.log_prob, output, label)

    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the score at labels drawn from the distribution, shape of `output`."""
        return self.score(output, self.sample(output, generator))

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one factor per label: its probability and its score."""
        for label in self.distribution(output.detach()).enumerate_support():
            yield self.log_prob(output, label).detach().exp(), self.score(output, label)

    def distribution(self, output: Tensor) -> Distribution:
        """Return the distribution of labels given outputs."""
        found = self._distribution(output)
        if not isinstance(found, Distribution):
            raise ParameterError(
                f"task {self._task!r}: `likelihood` must return a torch.distributions.Distribution, got "
                f"{type(found).__name__}."
            )
        return found


class LossLikelihood(Likelihood):
    """Gradient of a loss in place of that of a log-probability: only the labels of the data have one.

    The score of a sample is -n d loss / d output of a batch with n known labels. For a loss that is a mean over labels
    it is the gradient of the sample's own negative loss, summed over its labels, and the estimator `true` the empirical
    Fisher information. For a loss of pairs or of the whole batch it is the sample's part in the gradient, given the
    rest of the batch.

    Args:
        task: name of the task, for messages.
        loss: outputs and labels (B, ...) -> scalar.
        known: labels (B, ...) -> mask of the known ones.
    """

    drawable = False

    def __init__(self, task: str, loss: Callable[[Tensor, Tensor], Tensor], known: Callable[[Tensor], Tensor]) -> None:
        self._task = task
        self._loss = loss
        self._known = known

    def score(self, output: Tensor, label: Tensor) -> Tensor:
        """Return -n times the gradient of the loss with respect to the outputs, n being the number of known labels."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._loss(leaf, label), leaf)
        return -int(self._known(label).sum()) * gradient

    def couples_samples(self, output: Tensor, label: Tensor) -> bool:
        """Return True if the gradient at one sample's output changes with the outputs of others.

        The outputs of all samples but the first are moved by noise of three sizes, in which a hinge or a threshold of
        any usual size lies.
        """
        if len(output) < 2:
            return False
        first = self.score(output, label)[0]
        generator = torch.Generator().manual_seed(0)
        for size in (1.0, 10.0, 100.0):
            moved = output + size * torch.randn(output.shape, generator=generator).to(output)
            moved[0] = output[0]
            if not torch.allclose(self.score(moved, label)[0], first, rtol=1e-3, atol=1e-6):
                return True
        return False

    def log_prob(self, output: Tensor, label: Tensor) -> Tensor:
        """Raise ParameterError: a loss is no distribution."""
        raise self._refusal("log-probability")

    def mode(self, output: Tensor) -> Tensor:
        """Raise ParameterError: a loss is no distribution."""
        raise self._refusal("most probable label")

    def sample(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Raise ParameterError: a loss is no distribution."""
        raise self._refusal("labels to draw")

    def sampled_score(self, output: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Raise ParameterError: a loss is no distribution."""
        raise self._refusal("labels to draw")

    def expected(self, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise ParameterError: a loss is no distribution."""
        raise self._refusal("expectation over labels")

    def _refusal(self, what: str) -> ParameterError:
        return ParameterError(
            f"task {self._task!r}: its loss is no distribution and has no {what}. Use estimator='true' or 'batch', or "
            "pass `likelihood`."
        )
