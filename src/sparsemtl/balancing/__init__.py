"""Balancers, which combine the losses or gradients of T tasks into one update: TorchJD's by name, or its objects."""

from __future__ import annotations

from typing import Any

from sparsemtl.balancing import gradients, losses
from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.dwa import DynamicWeights, dwa
from sparsemtl.balancing.famo import Famo, famo
from sparsemtl.balancing.found import found_members
from sparsemtl.balancing.gradients import GradientBalancer
from sparsemtl.balancing.gradnorm import GradNorm
from sparsemtl.balancing.losses import LossBalancer
from sparsemtl.balancing.representation import RepresentationBalancer, mgda_ub
from sparsemtl.balancing.torchjd_module import Given
from sparsemtl.errors import ParameterError
from sparsemtl.registry.registry import Registry

BALANCERS: Registry[Balancer] = Registry(
    "balancer",
    {
        "mean": losses.mean,
        "sum": losses.total,
        "constant": losses.constant,
        "uncertainty": losses.uncertainty,
        "dwa": dwa,
        "random": losses.random_weights,
        "geometric-mean": losses.geometric,
        "imtl-l": losses.imtl_l,
        "stch": losses.stch,
        "cosmos": losses.cosmos,
        "pbi": losses.pbi,
        "famo": famo,
        "gradnorm": GradNorm,
        "mgda": gradients.mgda,
        "mgda-ub": mgda_ub,
        "cagrad": gradients.cagrad,
        "nash-mtl": gradients.nash_mtl,
        "cr-mogm": gradients.cr_mogm,
    },
    aliases={
        "rlw": "random",
        "rgw": "random-gradients",
        "uw": "uncertainty",
        "gls": "geometric-mean",
        "crmogm": "cr-mogm",
    },
    find=found_members,
    reasons=dict.fromkeys(
        ("modo", "sdmgrad"),
        "It needs the gradients of two independent batches per step, and a step has those of one. In a loop of your "
        "own, use `torchjd.aggregation` directly.",
    ),
)


def as_balancer(balancing: Balancer | str | Any) -> Balancer:
    """Return the balancer of a name, or for a scalarizer or aggregator of TorchJD; a balancer is returned as it is.

    Raises:
        ConfigError: if the name is unknown.
        ParameterError: if the object is of another kind.
    """
    if isinstance(balancing, Balancer):
        return balancing
    if isinstance(balancing, str):
        return BALANCERS.build(balancing)
    from torchjd.aggregation import Aggregator
    from torchjd.scalarization import DWA, FAMO, Constant, Mean, Scalarizer, Sum

    if isinstance(balancing, FAMO):
        return Famo(Given(balancing))
    if isinstance(balancing, DWA):
        return DynamicWeights(Given(balancing))
    if isinstance(balancing, Scalarizer):
        return LossBalancer(
            Given(balancing),
            constant=isinstance(balancing, (Mean, Sum, Constant)),
            trained=any(p.requires_grad for p in balancing.parameters()),
        )
    if isinstance(balancing, Aggregator):
        return GradientBalancer(Given(balancing))
    raise ParameterError(
        f"`balancing` must be a name, a balancer, or a scalarizer or aggregator of TorchJD, got {balancing!r}."
    )


__all__ = [
    "BALANCERS",
    "Balancer",
    "GradNorm",
    "GradientBalancer",
    "LossBalancer",
    "RepresentationBalancer",
    "as_balancer",
]
