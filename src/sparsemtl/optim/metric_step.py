"""Sizes and metrics of proximal steps: those of the step that an optimizer has taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sparsemtl.optim.layers import Layer
from sparsemtl.optim.penalties import Penalty
from sparsemtl.optim.proximal import Scratch

ProxLR = Literal["lr", "step"]
"""Size of an adaptive proximal step, in the metric d = sqrt(v) + eps of Adam's second moment v: `lr` is the learning
rate, as in the reference code; `step` is lr * sqrt(1 - beta2^t) / (1 - beta1^t), the size of Adam's own step in that
metric. `lr` is up to 6.5 times as large early in training, and the same late."""

_SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq")
"""Keys of v in the state of Adam and related optimizers; the first with `amsgrad`."""


class MetricStep(NamedTuple):
    """Step of a given size in the metric d = sqrt(moment) + eps, or without a moment in the identity."""

    size: float
    moment: Tensor | None
    eps: float

    def diagonal(self, like: Tensor) -> Tensor:
        """Return the diagonal of the metric of a parameter, in the parameter's shape."""
        if self.moment is None:
            return torch.ones_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        return self.moment.to(torch.promote_types(like.dtype, torch.float32)).sqrt().add_(self.eps)

    def shift(self, x: Tensor, penalty: Penalty, scratch: Scratch) -> Tensor | float:
        """Return step size times the penalty's weight, over the diagonal of the metric."""
        plain = self.size * penalty.weight(x)
        if self.moment is None:
            return plain
        root = torch.rsqrt(self.moment.to(x.dtype), out=scratch("shift", x)).reciprocal_()  # twice as fast as sqrt
        return torch.div(root.new_tensor(plain), root.add_(self.eps), out=root)


def step_of(group: Mapping[str, Any], state: Mapping[str, Any], prox_lr: ProxLR | None) -> MetricStep:
    """Return the proximal step of a parameter.

    Args:
        group: its group in the optimizer.
        state: its state there.
        prox_lr: size of a step in the optimizer's metric; None takes the plain step.
    """
    lr = float(group["lr"])
    moment = next((state[key] for key in _SECOND_MOMENTS if key in state), None)
    if moment is None or prox_lr is None:
        return MetricStep(lr, None, 0.0)
    if prox_lr == "step":
        t, (beta1, beta2) = float(state["step"]), map(float, group["betas"])
        lr *= math.sqrt(1 - beta2**t) / (1 - beta1**t)
    return MetricStep(lr, moment, float(group["eps"]))


def joint_step(layer: Layer, steps: Sequence[MetricStep]) -> tuple[Layer, MetricStep]:
    """Return units and one step for all their parameters.

    In a step with learning rates of their own, the metric of an entry is over its rate: the map of
    1/2 sum d_j / lr_j (x_j - z_j)^2 + R(z) is that of size lr in the metric d_j lr / lr_j, for any lr. Parameters whose
    rate is zero do not move, and take no part.
    """
    *_, last = steps
    if last.size == 0:
        return layer, last._replace(moment=None)
    moving = [step.size > 0 for step in steps]
    layer, steps = layer.restricted(moving), [step for step in steps if step.size > 0]
    moments = [step.moment for step in steps if step.moment is not None]
    alike = {(step.size, step.eps, step.moment is None) for step in steps}
    if len(alike) == 1:
        return layer, last._replace(moment=layer.gather(moments) if moments else None)
    squares = [
        step.diagonal(parameter).mul(last.size / step.size).square()
        for step, parameter in zip(steps, layer.parameters, strict=True)
    ]
    return layer, MetricStep(last.size, layer.gather(squares), 0.0)
