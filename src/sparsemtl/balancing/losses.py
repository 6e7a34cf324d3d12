"""Balancing by loss weights: TorchJD's scalarizers by their names in the field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.torchjd_module import Always, TorchJDModule
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import NonNegative, Positive

if TYPE_CHECKING:
    from torchjd.scalarization import Scalarizer


class LossBalancer(Balancer):
    """Combines T losses into one by a scalarizer, whose slopes are the weights of the tasks' gradients.

    Args:
        make: function from the number of tasks to a `torchjd.scalarization.Scalarizer`.
        constant: True if the slopes do not depend on the losses.
        trained: True if the run's optimizer trains the scalarizer's parameters.
        normalise: tasks over which gradients are averaged; see `Balancer.normalise`.
    """

    def __init__(
        self,
        make: Callable[[int], Scalarizer],
        *,
        constant: bool = False,
        trained: bool = False,
        normalise: Literal["all", "selected"] = "all",
    ) -> None:
        self._torchjd = TorchJDModule(make)
        self.constant = constant
        self.normalise = normalise
        self._trained = trained

    @property
    def module(self) -> Any:
        """Scalarizer, once attached."""
        return self._torchjd.module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the scalarizer."""
        self._torchjd.attach(tasks, device)

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the slopes of the scalarizer at these losses; the scalarizer's parameters get their gradients."""
        absent = torch.zeros(len(losses), dtype=torch.bool) if present is None else ~present
        leaf = losses.detach().requires_grad_()
        per_task = [p for p in self.module.parameters() if p.shape == losses.shape]
        before = {p: None if p.grad is None else p.grad.clone() for p in per_task}
        with torch.enable_grad():
            value = self.module(leaf)
        value.backward()
        for p, earlier in before.items():
            if p.grad is not None:
                p.grad[absent] = 0.0 if earlier is None else earlier[absent]
        return leaf.grad if leaf.grad is not None else torch.zeros_like(losses)

    def per_task_parameters(self, tasks: int) -> Iterable[nn.Parameter]:
        """Return the scalarizer's parameters of shape (T,), if they are trained."""
        return [p for p in self.parameters() if p.shape == (tasks,)]

    def end_epoch(self) -> None:
        """Update the averages of scalarizers that keep one per epoch."""
        step = getattr(self.module, "step", None)
        if callable(step):
            step()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the scalarizer's parameters, if they are trained."""
        return self.module.parameters() if self._trained else ()

    def state_dict(self) -> dict[str, Any]:
        """Return the scalarizer's state."""
        return self._torchjd.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._torchjd.load_state_dict(state)


_Weights = Annotated[
    list[float] | None, Doc("Preference for each task, in the tasks' order, one number per task; equal by default.")
]

_Reference = Annotated[
    list[float] | None, Doc("Smallest loss of each task, in the tasks' order, that distances start at; 0 by default.")
]


def _vector(name: str, weights: list[float] | None, tasks: int) -> Tensor:
    if weights is None:
        return torch.ones(tasks)
    if len(weights) != tasks:
        raise ParameterError(f"{name}: {tasks} tasks need {tasks} weights, got {len(weights)}.")
    return torch.tensor(weights, dtype=torch.float32)


def mean(
    *,
    normalise: Annotated[
        Literal["all", "selected"],
        Doc(
            "Tasks over which the gradient of a shared weight is averaged: all T; or selected, those whose network "
            "uses the weight, so that a weight of one task gets this task's whole gradient. Tasks then take no turns."
        ),
    ] = "all",
) -> LossBalancer:
    """Average the losses: plain multi-task learning."""
    return LossBalancer(Always(_Mean), constant=True, normalise=normalise)


class _Mean(nn.Module):
    """TorchJD's `Mean`, without an import of TorchJD, which takes longer than a small training."""

    def forward(self, losses: Tensor) -> Tensor:
        """Return the mean of losses (T,)."""
        return losses.mean()


def total() -> LossBalancer:
    """Add the losses: under SGD, this is the mean with T times the learning rate."""
    from torchjd.scalarization import Sum

    return LossBalancer(Always(Sum), constant=True)


def constant(
    *, weights: Annotated[list[float], Doc("Factor of each loss, in the tasks' order, one number per task.")]
) -> LossBalancer:
    """Add the losses with constant weights."""
    return LossBalancer(partial(_constant, weights), constant=True)


def uncertainty() -> LossBalancer:
    """Learn a homoscedastic uncertainty s per task: sum of exp(-s)L/2 + s/2 (Kendall et al. 2018)."""
    from torchjd.scalarization import UW

    return LossBalancer(UW, trained=True)


def random_weights() -> LossBalancer:
    """Draw loss weights at every step: softmax of normal numbers (Lin et al. 2021)."""
    from torchjd.scalarization import Random

    return LossBalancer(Always(Random))


def geometric() -> LossBalancer:
    """Take the geometric mean of the losses (GLS, Chennupati et al. 2019)."""
    from torchjd.scalarization import GeometricMean

    return LossBalancer(Always(GeometricMean))


def imtl_l() -> LossBalancer:
    """Learn scales that bring all losses to the same size: IMTL-L (Liu et al. 2021)."""
    from torchjd.scalarization import IMTLL

    return LossBalancer(IMTLL, trained=True)


def stch(
    *,
    mu: Annotated[Positive, Doc("Smoothing; the smaller, the closer the combined loss is to the maximum.")] = 1.0,
    weights: _Weights = None,
    reference: _Reference = None,
) -> LossBalancer:
    """Take a soft maximum of the weighted losses: smooth Tchebycheff (Lin et al. 2024)."""
    return LossBalancer(partial(_stch, mu, weights, reference))


def cosmos(
    *,
    alignment: Annotated[
        NonNegative, Doc("Factor of the cosine similarity between losses and preference; 0 is the weighted sum.")
    ] = 1.0,
    weights: _Weights = None,
) -> LossBalancer:
    """Add the weighted losses and penalize their angle to the preference: COSMOS (Ruchte & Grabocka 2021)."""
    return LossBalancer(partial(_cosmos, alignment, weights))


def pbi(
    *,
    theta: Annotated[NonNegative, Doc("Factor of the losses' distance from the line of the preference.")] = 5.0,
    weights: _Weights = None,
    reference: _Reference = None,
) -> LossBalancer:
    """Follow a preference by penalty-based boundary intersection (Zhang & Li 2007)."""
    return LossBalancer(partial(_pbi, theta, weights, reference))


# Functions of the number of tasks; unlike lambdas, they can be pickled.


def _constant(weights: list[float], tasks: int) -> Scalarizer:
    from torchjd.scalarization import Constant

    return Constant(_vector("constant", weights, tasks))


def _stch(mu: float, weights: list[float] | None, reference: list[float] | None, tasks: int) -> Scalarizer:
    from torchjd.scalarization import STCH

    given = _vector("stch", weights, tasks) / (tasks if weights is None else 1)
    return STCH(mu, given, _reference("stch", reference, tasks))


def _cosmos(alignment: float, weights: list[float] | None, tasks: int) -> Scalarizer:
    from torchjd.scalarization import COSMOS

    return COSMOS(alignment, _vector("cosmos", weights, tasks))


def _pbi(theta: float, weights: list[float] | None, reference: list[float] | None, tasks: int) -> Scalarizer:
    from torchjd.scalarization import PBI

    return PBI(theta, _vector("pbi", weights, tasks), _reference("pbi", reference, tasks))


def _reference(name: str, reference: list[float] | None, tasks: int) -> Tensor | None:
    if reference is not None and len(reference) != tasks:
        raise ParameterError(f"{name}: {tasks} tasks need {tasks} numbers in `reference`, got {len(reference)}.")
    return None if reference is None else torch.tensor(reference, dtype=torch.float32)
