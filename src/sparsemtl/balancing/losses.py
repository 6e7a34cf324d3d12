"""Balancing by loss weights: TorchJD's scalarizers by their names in the field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsemtl.balancing.balancer import TorchJD
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import NonNegative, Positive

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class LossBalancer(TorchJD):
    """A scalarizer: one number out of T losses, whose slopes are the weights of the tasks' gradients.

    Args:
        make: number of tasks -> a `torchjd.scalarization.Scalarizer`.
        constant: the slopes do not depend on the losses.
        trained: the scalarizer's parameters are trained by the run's optimizer.
    """

    def __init__(self, make: Callable[[int], Scalarizer], *, constant: bool = False, trained: bool = False) -> None:
        super().__init__(make)
        self.constant = constant
        self._trained = trained

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Slopes of the scalarizer at these losses; its own parameters get their gradients."""
        absent = torch.zeros(len(losses), dtype=torch.bool) if present is None else ~present
        leaf = losses.detach().requires_grad_()
        before = {p: None if p.grad is None else p.grad.clone() for p in self._per_task(len(losses))}
        with torch.enable_grad():
            value = self.module(leaf)
        value.backward()
        for p, earlier in before.items():
            if p.grad is not None:
                p.grad[absent] = 0.0 if earlier is None else earlier[absent]
        return leaf.grad if leaf.grad is not None else torch.zeros_like(losses)

    def _per_task(self, tasks: int) -> list[nn.Parameter]:
        """The scalarizer's parameters of shape (T,)."""
        return [p for p in self.module.parameters() if p.shape == (tasks,)]

    @contextmanager
    def held(self, present: Tensor, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Leave what the scalarizer has learned of tasks without a label, and the optimizer's memory of it."""
        with held_entries(self._per_task(len(present)) if self._trained else [], ~present, optimizer):
            yield

    def end_epoch(self) -> None:
        """Roll the history on, for scalarizers that keep one by epoch."""
        roll = getattr(self.module, "step", None)
        if callable(roll):
            roll()

    def parameters(self) -> Iterable[nn.Parameter]:
        """The scalarizer's, if they are trained."""
        return self.module.parameters() if self._trained else ()


@contextmanager
def held_entries(
    parameters: Iterable[nn.Parameter], entries: Tensor, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Put back entries of parameters afterwards, and those of what an optimizer remembers of them entry by entry.

    Args:
        parameters: tensors of one shape.
        entries: bool, of that shape; True where nothing may move.
        optimizer: what may move them inside.
    """
    before = [(t, t.detach().clone()) for p in parameters for t in (p, *_moments(p, optimizer))]
    yield
    with torch.no_grad():
        for tensor, value in before:
            tensor[entries] = value[entries]


def _moments(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return what an optimizer remembers of every entry of a parameter."""
    state = optimizer.state.get(parameter, {}).values()
    return [value for value in state if isinstance(value, Tensor) and value.shape == parameter.shape]


def _vector(name: str, weights: list[float] | None, tasks: int) -> Tensor:
    if weights is None:
        return torch.ones(tasks)
    if len(weights) != tasks:
        raise ParameterError(f"{name}: {tasks} tasks need {tasks} weights, got {len(weights)}.")
    return torch.tensor(weights, dtype=torch.float32)


def mean() -> LossBalancer:
    """Mean of the losses: plain multi-task learning."""
    from torchjd.scalarization import Mean

    return LossBalancer(lambda tasks: Mean(), constant=True)


def total() -> LossBalancer:
    """Sum of the losses: under SGD, the mean with T times the learning rate."""
    from torchjd.scalarization import Sum

    return LossBalancer(lambda tasks: Sum(), constant=True)


def constant(*, weights: list[float]) -> LossBalancer:
    """Weighted sum of the losses, one weight a task in the tasks' order."""
    from torchjd.scalarization import Constant

    return LossBalancer(lambda tasks: Constant(_vector("constant", weights, tasks)), constant=True)


def uncertainty() -> LossBalancer:
    """Learned homoscedastic uncertainty: sum of exp(-s)L/2 + s/2 (Kendall et al. 2018)."""
    from torchjd.scalarization import UW

    return LossBalancer(UW, trained=True)


def random_weights() -> LossBalancer:
    """Random loss weighting: softmax of normal draws at every step (Lin et al. 2021)."""
    from torchjd.scalarization import Random

    return LossBalancer(lambda tasks: Random())


def geometric() -> LossBalancer:
    """Geometric mean of the losses (GLS, Chennupati et al. 2019)."""
    from torchjd.scalarization import GeometricMean

    return LossBalancer(lambda tasks: GeometricMean())


def imtl_l() -> LossBalancer:
    """IMTL-L: learned scales that bring all losses to the same size (Liu et al. 2021)."""
    from torchjd.scalarization import IMTLL

    return LossBalancer(IMTLL, trained=True)


def stch(*, mu: Positive = 1.0, weights: list[float] | None = None) -> LossBalancer:
    """Smooth Tchebycheff: a soft maximum of the weighted losses (Lin et al. 2024)."""
    from torchjd.scalarization import STCH

    return LossBalancer(lambda tasks: STCH(mu, _vector("stch", weights, tasks) / (tasks if weights is None else 1)))


def cosmos(*, alignment: NonNegative = 1.0, weights: list[float] | None = None) -> LossBalancer:
    """COSMOS: weighted sum with a penalty on the angle between losses and preference (Ruchte & Grabocka 2021)."""
    from torchjd.scalarization import COSMOS

    return LossBalancer(lambda tasks: COSMOS(alignment, _vector("cosmos", weights, tasks)))


def pbi(*, theta: NonNegative = 5.0, weights: list[float] | None = None) -> LossBalancer:
    """Penalty-based boundary intersection along a preference (Zhang & Li 2007)."""
    from torchjd.scalarization import PBI

    return LossBalancer(lambda tasks: PBI(theta, _vector("pbi", weights, tasks)))
