"""Every balancer of the registry with data per task, missing labels and accumulation, in every precision of a CPU."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import pytest
import torch
from members import required_parameters
from test_balancers import NAMES, case, model_of
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS, Balancer
from sparsemtl.balancing.targets import Representation
from sparsemtl.errors import ParameterError
from sparsemtl.tasks.batches import Group
from sparsemtl.training import setup

PRECISIONS = {
    "32-true": (torch.float32, 1e-6),
    "64-true": (torch.float64, 1e-12),
    "bf16-mixed": (torch.float32, 0.01),
    "bf16-true": (torch.bfloat16, 0.01),
}
"""Precision -> type of the weights, and largest distance from weights that are trained in double precision."""
CASES = [(name, None) for name in NAMES] + [
    (name, gradients) for name in ("cagrad", "nash-mtl") for gradients in ("gramian", "representation")
]
DRAWS = ["random", "random-gradients", "graddrop"]
"""Balancers that draw floats, which differ from one precision to another."""


def made(name: str, gradients: str | None = None) -> Balancer:
    options = {} if gradients is None else {"gradients": gradients}
    return BALANCERS.build(name, **required_parameters(name, 3), **options)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh())


def tasks() -> list[sm.Task]:
    return [sm.Classification("a", 3), sm.Regression("b"), sm.MultiLabel("c", 2)]


def batches(*, own_data: bool) -> list[list[Group]]:
    """Three batches: in the second, a task has no label; in the third, a few are missing."""
    found = []
    for seed in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        labels = {"a": x[:, :3].argmax(1), "b": x[:, 0] + 1, "c": (x[:, :2] > 0).float()}
        if seed == 1:
            labels["a"].fill_(-100)
        if seed == 2:
            labels["b"][:2] = math.nan
        apart = [Group(x, {task: labels[task]}, (task,)) for task in "abc"]
        found.append(apart if own_data else [Group(x, labels, ("a", "b", "c"))])
    return found


def trained(name: str, gradients: str | None, precision: Any, *, own_data: bool = False) -> Tensor:
    """All weights after two steps, of two batches and of one, with the set-up of a `Trainer`."""
    model = sm.SharedBottom(encoder(), tasks())
    trainer = sm.Trainer(
        model,
        balancing=made(name, gradients),
        optimizer=partial(torch.optim.SGD, lr=0.05),
        precision=precision,
        accelerator="cpu",
    )
    groups = batches(own_data=own_data)
    loaders: Any = [(group.x, group.targets) for group in groups[0]]
    if own_data:
        loaders = {task: [pair] for task, pair in zip("abc", loaders, strict=True)}
    step = setup.set_up(trainer._parts, trainer.options, loaders).step
    torch.manual_seed(1)
    step.step(groups[:2])
    step.step(groups[2:])
    step.balancer.end_epoch()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(autouse=True)
def one_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Fabric per precision: making one reads the entry points of all installed packages."""
    monkeypatch.setattr(setup, "_fabric", made_fabric)


made_fabric = cache(setup._fabric)


@pytest.mark.parametrize(("name", "gradients"), CASES)
def test_it_trains(name: str, gradients: str | None) -> None:
    exact = trained(name, gradients, "64-true")
    at_representation = isinstance(made(name, gradients).gradient_target(model_of("abc")), Representation)
    for precision, (dtype, error) in PRECISIONS.items():
        with case(precision):
            found = trained(name, gradients, precision, own_data=not at_representation)
            assert found.dtype == dtype
            if name not in DRAWS or precision == "64-true":
                torch.testing.assert_close(found.double(), exact, rtol=0, atol=error)
            assert bool(found.isfinite().all())
    if at_representation:
        with pytest.raises(ParameterError, match="the tasks have networks or data of their own"):
            trained(name, gradients, "32-true", own_data=True)
