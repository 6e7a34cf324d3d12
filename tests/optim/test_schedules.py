"""Learning-rate schedules by name: what they do to the rate, epoch by epoch."""

from __future__ import annotations

import math

import pytest
import torch

from sparsemtl.optim import SCHEDULERS


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(name: str, epochs: int, **options: float) -> list[float]:
    made = optimizer()
    schedule, found = SCHEDULERS.build(name, made, epochs, **options), []
    for _ in range(epochs):
        found.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    return found


def test_constant_rises_to_the_rate_and_stays() -> None:
    assert rates("constant", 5, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_cosine_goes_down_along_half_a_cosine() -> None:
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates("cosine", 4, floor=0.1) == pytest.approx(expected)


def test_step_multiplies_every_so_many_epochs() -> None:
    assert rates("step", 5, every=2, factor=0.5) == pytest.approx([1, 1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("score", [0.5, -0.5, 0.0])
def test_plateau_lowers_the_rate_where_the_score_stands_still_whatever_its_sign(score: float) -> None:
    made = optimizer()
    schedule = SCHEDULERS.build("plateau", made, 10, patience=1)
    for better in range(3):
        schedule.step(score - 1 + better / 3)  # type: ignore[call-arg]
    assert made.param_groups[0]["lr"] == 1.0
    for _ in range(2):
        schedule.step(score - 1)  # type: ignore[call-arg]
    assert made.param_groups[0]["lr"] == pytest.approx(0.1)
