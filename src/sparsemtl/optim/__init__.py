"""Optimizers and schedules by name, the strict update that masks need, and proximal steps that make weights sparse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

from sparsemtl.optim.groups import Grouping
from sparsemtl.optim.masked import FreezeOutsideMask, MaskedOptimizer, freeze_outside_mask
from sparsemtl.optim.penalties import L1, PENALTIES, GroupLasso, GroupMCP, Penalty
from sparsemtl.optim.proximal_optimizers import ProximalAdamW, ProximalSGD
from sparsemtl.optim.proximal_step import ProximalStep
from sparsemtl.optim.sparsity import Sparsity, group_sparsity, layer_sparsity, parameter_sparsity, total_sparsity
from sparsemtl.registry.parameters import Count, Natural, NonNegative, Positive, Share
from sparsemtl.registry.registry import Registry

Parameters = Iterable[Any]


def adam(
    parameters: Parameters,
    *,
    lr: Positive = 1e-3,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2015); weight decay is coupled, as in the paper."""
    return torch.optim.Adam(parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)


def adamw(
    parameters: Parameters,
    *,
    lr: Positive = 1e-3,
    beta1: Share = 0.9,
    beta2: Share = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)


def sgd(
    parameters: Parameters,
    *,
    lr: Positive = 1e-2,
    momentum: Share = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def constant(optimizer: Optimizer, epochs: int, *, warmup: Natural = 0) -> LRScheduler:
    """The learning rate as it is, after `warmup` epochs of a linear rise."""
    return LambdaLR(optimizer, lambda epoch: min(1.0, (epoch + 1) / (warmup + 1)))


def cosine(optimizer: Optimizer, epochs: int, *, floor: NonNegative = 0.0) -> LRScheduler:
    """Down to `floor` along half a cosine over the epochs (Loshchilov & Hutter 2017)."""
    return CosineAnnealingLR(optimizer, T_max=epochs, eta_min=floor)


def step(optimizer: Optimizer, epochs: int, *, every: Count = 30, factor: Positive = 0.1) -> LRScheduler:
    """Times `factor` every `every` epochs."""
    return StepLR(optimizer, step_size=every, gamma=factor)


def plateau(optimizer: Optimizer, epochs: int, *, patience: Natural = 5, factor: Share = 0.1) -> ReduceLROnPlateau:
    """Times `factor` after `patience` epochs without a better validation score."""
    return ReduceLROnPlateau(optimizer, "max", patience=patience, factor=factor, threshold=0.0, threshold_mode="abs")


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer", {"adam": adam, "adamw": adamw, "sgd": sgd})
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
    "Penalty",
    "ProximalAdamW",
    "ProximalSGD",
    "ProximalStep",
    "Sparsity",
    "freeze_outside_mask",
    "group_sparsity",
    "layer_sparsity",
    "parameter_sparsity",
    "total_sparsity",
]
