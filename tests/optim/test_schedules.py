"""Learning-rate schedules by name: what they do to the rate, epoch by epoch."""

from __future__ import annotations

import math

import pytest
import torch

from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.optim import SCHEDULERS, Schedule


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


def test_cosine_and_linear_fall_after_a_rise() -> None:
    down = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates("cosine", 6, warmup=2, floor=0.2) == pytest.approx([1 / 3, 2 / 3, *down])
    assert rates("linear", 6, warmup=2) == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4])
    assert rates("linear", 4, floor=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_rise_as_long_as_the_training_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="`warmup` must be shorter than the whole schedule, got 3 of 3"):
        Schedule(name, warmup=3)(optimizer(), 3)


def test_a_schedule_knows_its_parameters() -> None:
    with pytest.raises(ConfigError, match=r"unknown scheduler 'cosin'\. Did you mean 'cosine'"):
        Schedule("cosin")
    with pytest.raises(ConfigError, match=r"unknown parameter 'warm'\. Did you mean 'warmup'"):
        Schedule("cosine", warm=3)


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
