"""Optimizers and learning-rate schedules by name, strict updates for masks, and proximal steps for sparse weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from torch.optim import Optimizer
from typing_extensions import Doc

from sparsemtl.optim import fused
from sparsemtl.optim.groups import Grouping
from sparsemtl.optim.masked import FreezeOutsideMask, MaskedOptimizer, freeze_outside_mask
from sparsemtl.optim.parameter_groups import ParameterGroup, ParameterGroupOptions, parameter_groups
from sparsemtl.optim.penalties import L1, PENALTIES, GroupLasso, GroupMCP, Penalty
from sparsemtl.optim.penalty_groups import penalty_groups
from sparsemtl.optim.proximal_optimizers import ProximalAdamW, ProximalSGD
from sparsemtl.optim.proximal_step import ProximalStep
from sparsemtl.optim.schedules import SCHEDULERS, Schedule
from sparsemtl.optim.sparsity import Sparsity, group_sparsity, layer_sparsity, parameter_sparsity, total_sparsity
from sparsemtl.registry.parameters import NonNegative, Positive, Share
from sparsemtl.registry.registry import Registry

Parameters = Iterable[Any]

_Rate = Annotated[Positive, Doc("Learning rate.")]
_Decay = Annotated[NonNegative, Doc("Weight decay per step, as a multiple of the learning rate.")]
_Coupled = Annotated[NonNegative, Doc("Factor of the weights that is added to the gradient (L2 penalty).")]
_Beta1 = Annotated[Share, Doc("Decay per step of the running mean of gradients.")]
_Beta2 = Annotated[Share, Doc("Decay per step of the running mean of squared gradients.")]
_Eps = Annotated[Positive, Doc("Addend of the square root in the denominator, against division by zero.")]


def adam(
    parameters: Parameters,
    *,
    lr: _Rate = 1e-3,
    beta1: _Beta1 = 0.9,
    beta2: _Beta2 = 0.999,
    eps: _Eps = 1e-8,
    weight_decay: _Coupled = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2015); weight decay is coupled, as in the paper."""
    betas = (beta1, beta2)
    return fused.use_fused(fused.Adam(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))


def adamw(
    parameters: Parameters,
    *,
    lr: _Rate = 1e-3,
    beta1: _Beta1 = 0.9,
    beta2: _Beta2 = 0.999,
    eps: _Eps = 1e-8,
    weight_decay: _Decay = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    betas = (beta1, beta2)
    return fused.use_fused(fused.AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))


def sgd(
    parameters: Parameters,
    *,
    lr: _Rate = 1e-2,
    momentum: Annotated[Share, Doc("Factor of the previous update that is added to the present one.")] = 0.9,
    nesterov: Annotated[bool, Doc("Compute the momentum at the position ahead (Nesterov).")] = False,
    weight_decay: _Coupled = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    made = fused.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return fused.use_fused(made)


OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer", {"adam": adam, "adamw": adamw, "sgd": sgd}, common=ParameterGroupOptions
)
__all__ = [
    "L1",
    "OPTIMIZERS",
    "PENALTIES",
    "SCHEDULERS",
    "FreezeOutsideMask",
    "GroupLasso",
    "GroupMCP",
    "Grouping",
    "MaskedOptimizer",
    "ParameterGroup",
    "ParameterGroupOptions",
    "Penalty",
    "ProximalAdamW",
    "ProximalSGD",
    "ProximalStep",
    "Schedule",
    "Sparsity",
    "freeze_outside_mask",
    "group_sparsity",
    "layer_sparsity",
    "parameter_groups",
    "parameter_sparsity",
    "penalty_groups",
    "total_sparsity",
]
