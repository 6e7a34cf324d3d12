"""Small expert networks, and the obvious slow way to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import Classification, MultiTaskModel, Regression, Task
from sparsemtl.architectures import experts as side_by_side

WIDTH = 5


def tasks(names: str = "abc") -> list[Task]:
    kinds: dict[str, Callable[[], Task]] = {
        "a": lambda: Classification("a", 3),
        "b": lambda: Regression("b"),
        "c": lambda: Classification("c", 2),
    }
    return [kinds[name]() for name in names]


def stack(*widths: int, reads: int = WIDTH) -> nn.Sequential:
    """Linear layers with ReLU behind each."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(reads, width), nn.ReLU()]
        reads = width
    return nn.Sequential(*layers)


def batch(count: int = 7, *, seed: int = 3) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(model: nn.Module, x: Tensor, tasks: list[str] | None = None) -> dict[str, Tensor | None]:
    """Gradients of the sum of squared outputs; None where there is no path."""
    model.zero_grad()
    loss_of(model(x, tasks=tasks)).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([output.square().sum() for output in outputs.values()]).sum()


@contextmanager
def one_after_the_other() -> Iterator[None]:
    """Inside, experts run in a plain loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "_together", None)
        patch.setattr(side_by_side, "_alike", lambda readings: None)
        yield


@contextmanager
def as_one_only() -> Iterator[None]:
    """Inside, it is an error to run experts in a plain loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "_apart", None)
        yield


def assert_same_model(one: MultiTaskModel, other: MultiTaskModel, x: Tensor) -> None:
    """Outputs and gradients are equal bit for bit, parameter by parameter in order."""
    ours, theirs = one(x), other(x)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)
    for left, right in zip(gradients(one, x).values(), gradients(other, x).values(), strict=True):
        assert left is not None
        assert right is not None
        assert torch.equal(left, right)
