"""Proximal maps group by group and number by number, as slow and as plain as they can be written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

Numbers = Sequence[float]
Map = Callable[[Numbers, Numbers], list[float]]
"""Entries of a group, their shifts -> the shrunken entries."""


def slow_lasso(x: Numbers, shift: Numbers) -> list[float]:
    """Zero, or the root of sum (x / (r + shift))^2 = 1 by bisection."""
    if math.fsum((a / s) ** 2 for a, s in zip(x, shift, strict=True)) <= 1:
        return [0.0] * len(x)
    low, high = 0.0, math.hypot(*x)
    while low < (middle := (low + high) / 2) < high:
        above = math.fsum((a / (middle + s)) ** 2 for a, s in zip(x, shift, strict=True)) > 1
        low, high = (middle, high) if above else (low, middle)
    return [a * high / (high + s) for a, s in zip(x, shift, strict=True)]


def slow_l1(x: Numbers, shift: Numbers) -> list[float]:
    """Soft threshold."""
    return [math.copysign(max(0.0, abs(a) - s), a) for a, s in zip(x, shift, strict=True)]


def over_groups(shrink: Map, x: Tensor, shift: Tensor) -> Tensor:
    """Apply a map to every group of (L, A, G, B)."""
    result = torch.empty_like(x)
    for row in range(x.shape[0]):
        for group in range(x.shape[2]):
            own = (row, slice(None), group)
            entries = shrink(x[own].flatten().tolist(), shift[own].flatten().tolist())
            result[own] = torch.tensor(entries, dtype=x.dtype).view_as(x[own])
    return result


def input_channels(weight: Tensor) -> Iterator[tuple[slice, ...]]:
    """Where the groups of `input-channel` are."""
    for channel in range(weight.shape[1]):
        yield slice(None), slice(channel, channel + 1)


def slow_adaptive_step(weight: Tensor, second_moment: Tensor, lr: float, strength: float, eps: float) -> Tensor:
    """Group lasso's step on input channels in the metric sqrt(v) + eps."""
    result = weight.clone()
    for own in input_channels(weight):
        tau = lr * strength * math.sqrt(weight[own].numel())
        shift = [tau / (math.sqrt(v) + eps) for v in second_moment[own].flatten().tolist()]
        result[own] = torch.tensor(slow_lasso(weight[own].flatten().tolist(), shift), dtype=weight.dtype).view_as(
            weight[own]
        )
    return result


def slow_plain_step(weight: Tensor, lr: float, strength: float) -> Tensor:
    """Group lasso's plain step on input channels."""
    result = weight.clone()
    for own in input_channels(weight):
        tau = lr * strength * math.sqrt(weight[own].numel())
        norm = float(weight[own].norm())
        result[own] *= max(0.0, 1 - tau / norm) if norm else 0.0
    return result


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal down to the sign of zero and the payload of NaN."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.element_size()]
    return torch.equal(left.detach().contiguous().view(kind), right.detach().contiguous().view(kind))


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two convolutions, a norm and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 2),
    ).to(dtype)


def backward(model: nn.Module, seed: int, samples: slice = slice(None)) -> Tensor:
    """The gradient of a dense loss on some images, added to what is there."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    images = torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)[samples]
    loss = (model(images) - 1).square().sum() / 4
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    """Some steps."""
    for seed in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()
