"""Balancing by gradients: TorchJD's aggregators on the tasks' (masked) gradients of the shared weights.

Heads get the plain gradient of their own task, shared weights the aggregate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import torch
from annotated_types import Interval
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.balancing.absent import aggregate, gramian_weights
from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.representation import RepresentationBalancer
from sparsemtl.balancing.torchjd_module import Always, TorchJDModule, check_reads_inner_products, check_tasks
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Default, NonNegative

Scope = Literal["all", "overlap"]
Gradients = Literal["weights", "gramian", "representation"]


class GradientOptions(TypedDict, total=False):
    """Options of every aggregator."""

    scope: Annotated[
        Scope,
        Default("all"),
        Doc(
            "Shared weights whose gradients are combined: all, or the overlap, those that several tasks use. A weight "
            "that one task uses gets the plain gradient of this task."
        ),
    ]
    gradients: Annotated[
        Gradients,
        Default("weights"),
        Doc(
            "What is read of the gradients. weights: those of the shared weights, one row of their number per task. "
            "gramian: their inner products, which are computed in chunks of weights; the same update to rounding, in "
            "the memory of one row. representation: inner products of the gradients at the tasks' common "
            "representation; the weights found there weigh the losses, heads included. The last two are for "
            "aggregators that read inner products only."
        ),
    ]


def gradient_balancer(
    make: Callable[[int], nn.Module],
    *,
    scope: Scope = "all",
    gradients: Gradients = "weights",
) -> GradientBalancer | RepresentationBalancer:
    """Return the balancer of an aggregator.

    Args:
        make: function from the number of tasks to the aggregator.
        scope: see `GradientOptions`.
        gradients: see `GradientOptions`.

    Raises:
        ParameterError: if the options exclude each other.
    """
    if gradients != "representation":
        return GradientBalancer(make, scope=scope, from_gramian=gradients == "gramian")
    if scope != "all":
        raise ParameterError(
            "`scope: overlap` chooses among the gradients of the shared weights, and `gradients: representation` reads "
            "none of them. Leave one of the two out."
        )
    return RepresentationBalancer(make)


class GradientBalancer(Balancer):
    """Combines T gradients into one by an aggregator.

    Args:
        make: function from the number of tasks to a `torchjd.aggregation.Aggregator`.
        scope: weights whose gradients are combined; see `Balancer.scope`.
        from_gramian: read the gradients' inner products only; see `Balancer.from_gramian`.
    """

    combines_gradients = True

    def __init__(self, make: Callable[[int], nn.Module], *, scope: Scope = "all", from_gramian: bool = False) -> None:
        self.make = make
        self.scope = scope
        self.from_gramian = from_gramian
        self._torchjd = TorchJDModule(make)

    @property
    def module(self) -> Any:
        """Aggregator, once attached."""
        return self._torchjd.module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the aggregator, after a trial with this number of tasks.

        Raises:
            ParameterError: if the aggregator cannot combine this number of gradients, or reads more than inner
                products where these are all that there is.
        """
        check_tasks(self.make, tasks)
        self._torchjd.attach(tasks, device)
        if self.from_gramian:
            check_reads_inner_products(self.module, "gramian")

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return ones (T,): the aggregator weighs the gradients."""
        return torch.ones_like(losses)

    def aggregate(self, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Combine gradients (T, P) into one (P,); see the module `absent` for tasks that are not present."""
        everybody = torch.ones(len(rows), dtype=torch.bool)
        with self._torchjd.vectors_in(rows.dtype):
            return aggregate(self.module, rows, everybody if present is None else present)

    def gradient_weights(self, gramian: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the factors (T,) with which `aggregate` adds the gradients of this Gramian (T, T)."""
        everybody = torch.ones(len(gramian), dtype=torch.bool)
        with self._torchjd.vectors_in(gramian.dtype):
            return gramian_weights(self.module, gramian, everybody if present is None else present)

    def state_dict(self) -> dict[str, Any]:
        """Return the aggregator's state."""
        return self._torchjd.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._torchjd.load_state_dict(state)


def mgda(**options: Unpack[GradientOptions]) -> Balancer:
    """Minimum-norm point of the gradients' convex hull, exact to rounding (Désidéri 2012; Sener & Koltun 2018)."""
    from sparsemtl.balancing import solved

    return gradient_balancer(Always(solved.mgda), **options)


def cagrad(
    *,
    c: Annotated[NonNegative, Doc("Radius of the ball around the mean gradient, over the mean's length.")] = 0.5,
    rescale: Annotated[
        Annotated[int, Interval(ge=0, le=2)],
        Doc("Scaling of the paper's code: 0, none; 1, by 1 / (1 + c^2), which it runs with; 2, by 1 / (1 + c)."),
    ] = 0,
    **options: Unpack[GradientOptions],
) -> Balancer:
    """Conflict-averse gradient: near the mean, the best for the task that gains least (Liu et al. 2021)."""
    from sparsemtl.balancing import solved

    return gradient_balancer(Always(solved.cagrad, c, rescale), **options)


def nash_mtl(
    *,
    max_norm: Annotated[NonNegative, Doc("Largest norm of the combined gradient; 0 sets no limit.")] = 1.0,
    update_weights_every: Annotated[
        Count, Doc("Steps from one solution to the next; the weights stay between them.")
    ] = 1,
    **options: Unpack[GradientOptions],
) -> Balancer:
    """Nash bargaining solution of the gradients (Navon et al. 2022)."""
    from sparsemtl.balancing import solved

    return gradient_balancer(Always(solved.nash_mtl, max_norm, update_weights_every), **options)


def cr_mogm(
    *,
    weighting: Annotated[
        str, Doc("Name of the aggregator whose weights are averaged; one that adds the gradients with weights.")
    ] = "mgda",
    parameters: Annotated[dict[str, Any] | None, Doc("Parameters of that aggregator by name.")] = None,
    alpha: Annotated[
        Annotated[float, Interval(ge=0, le=1)], Doc("Decay of the running average in [0, 1]; 0 averages nothing.")
    ] = 0.9,
    initial_weights: Annotated[
        list[float] | None, Doc("First weights, in the tasks' order, one number per task; by default the first found.")
    ] = None,
    **options: Unpack[GradientOptions],
) -> Balancer:
    """Average the weights of another aggregator over the steps (CR-MOGM, Zhou et al. 2022)."""
    from sparsemtl.balancing import BALANCERS

    inner = BALANCERS.build(weighting, **(parameters or {}))
    if not isinstance(inner, GradientBalancer):
        raise ParameterError(f"cr-mogm averages the weights of an aggregator, and {weighting!r} combines no gradients.")
    return gradient_balancer(Smoothed(inner.make, weighting, alpha, initial_weights), **options)


@dataclass(frozen=True)
class Smoothed:
    """Function from the number of tasks to an aggregator with a running average of its weights.

    Attributes:
        make: function to the aggregator itself.
        name: its name, for messages.
        alpha: decay of the average.
        initial: first weights.
    """

    make: Callable[[int], nn.Module]
    name: str
    alpha: float
    initial: list[float] | None

    def __call__(self, tasks: int) -> nn.Module:
        """Return the aggregator."""
        from torchjd.aggregation import CRMOGMWeighting, GramianWeightedAggregator, WeightedAggregator

        if self.initial is not None and len(self.initial) != tasks:
            raise ParameterError(
                f"cr-mogm: {tasks} tasks need {tasks} numbers in `initial_weights`, got {len(self.initial)}."
            )
        initial = None if self.initial is None else torch.tensor(self.initial)
        inner = self.make(tasks)
        if isinstance(inner, GramianWeightedAggregator):
            weighting = CRMOGMWeighting(inner.gramian_weighting, self.alpha, initial)
            return GramianWeightedAggregator(weighting)
        if isinstance(inner, WeightedAggregator):
            return WeightedAggregator(CRMOGMWeighting(inner.weighting, self.alpha, initial))
        raise ParameterError(
            f"cr-mogm averages the weights of gradients, and {self.name!r} does not add the gradients with weights."
        )
