"""Optimizers and learning-rate schedules by name, strict updates for masks, and proximal steps for sparse weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR
from typing_extensions import Doc

from sparsemtl.optim import fused
from sparsemtl.optim.groups import Grouping
from sparsemtl.optim.masked import FreezeOutsideMask, MaskedOptimizer, freeze_outside_mask
from sparsemtl.optim.parameter_groups import ParameterGroup, ParameterGroupOptions, parameter_groups
from sparsemtl.optim.penalties import L1, PENALTIES, GroupLasso, GroupMCP, Penalty
from sparsemtl.optim.penalty_groups import penalty_groups
from sparsemtl.optim.proximal_optimizers import ProximalAdamW, ProximalSGD
from sparsemtl.optim.proximal_step import ProximalStep
from sparsemtl.optim.sparsity import Sparsity, group_sparsity, layer_sparsity, parameter_sparsity, total_sparsity
from sparsemtl.registry.parameters import Count, Natural, NonNegative, Positive, Share
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


def constant(
    optimizer: Optimizer,
    epochs: int,
    *,
    warmup: Annotated[Natural, Doc("Epochs of a linear rise at the beginning.")] = 0,
) -> LRScheduler:
    """Keep the learning rate, after `warmup` epochs of a linear rise."""
    return LambdaLR(optimizer, lambda epoch: min(1.0, (epoch + 1) / (warmup + 1)))


def cosine(
    optimizer: Optimizer,
    epochs: int,
    *,
    floor: Annotated[NonNegative, Doc("Learning rate at the end.")] = 0.0,
) -> LRScheduler:
    """Lower the learning rate to `floor` along half a cosine over the epochs (Loshchilov & Hutter 2017).

    `floor` is that of the first parameter group; groups with another learning rate end at the same fraction of theirs.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not floor or len(set(rates)) == 1:
        return CosineAnnealingLR(optimizer, T_max=epochs, eta_min=floor)
    end = floor / rates[0]
    return LambdaLR(optimizer, lambda epoch: end + (1 - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2)


def step(
    optimizer: Optimizer,
    epochs: int,
    *,
    every: Annotated[Count, Doc("Epochs between two changes.")] = 30,
    factor: Annotated[Positive, Doc("Factor of the learning rate per change.")] = 0.1,
) -> LRScheduler:
    """Multiply the learning rate by `factor` every `every` epochs."""
    return StepLR(optimizer, step_size=every, gamma=factor)


def plateau(
    optimizer: Optimizer,
    epochs: int,
    *,
    patience: Annotated[Natural, Doc("Epochs without a better validation score before a change.")] = 5,
    factor: Annotated[Share, Doc("Factor of the learning rate per change.")] = 0.1,
) -> ReduceLROnPlateau:
    """Multiply the learning rate by `factor` after `patience` epochs without a better validation score."""
    return ReduceLROnPlateau(optimizer, "max", patience=patience, factor=factor, threshold=0.0, threshold_mode="abs")


OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer", {"adam": adam, "adamw": adamw, "sgd": sgd}, common=ParameterGroupOptions
)
SCHEDULERS: Registry[LRScheduler] = Registry(
    "scheduler", {"constant": constant, "cosine": cosine, "step": step, "plateau": plateau}
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
    "Sparsity",
    "freeze_outside_mask",
    "group_sparsity",
    "layer_sparsity",
    "parameter_groups",
    "parameter_sparsity",
    "penalty_groups",
    "total_sparsity",
]
