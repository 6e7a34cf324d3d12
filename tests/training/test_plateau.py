"""What a `ReduceLROnPlateau` is stepped with: the score to maximise, or a loss to minimise."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch.optim.lr_scheduler import ReduceLROnPlateau
from training_toys import loader, quiet, shared

from sparsemtl.errors import MetricWarning, ParameterError
from sparsemtl.optim import SCHEDULERS
from sparsemtl.training.evaluation.monitors import Monitor
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.plateau import Plateau

MODEL = shared(a=2.0, b=1.0)


def results(score: float = 0.5, loss: float = 1.0, *, b: float | None = None) -> Results:
    """Both tasks with this primary metric and this loss; "b" with a metric of its own if given."""
    return {
        "a": {"loss": loss, "accuracy": score},
        "b": {"loss": loss, "r2": score if b is None else b},
    }


def scheduler(mode: Any, **options: Any) -> ReduceLROnPlateau:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return ReduceLROnPlateau(optimizer, mode, **{"patience": 0, "factor": 0.5, **options})


def rate(schedule: ReduceLROnPlateau) -> float:
    return float(schedule.optimizer.param_groups[0]["lr"])


def rates(schedule: ReduceLROnPlateau, history: list[Results], monitor: Monitor = "score") -> list[float]:
    plateau = Plateau(schedule, monitor, MODEL.tasks)
    found = []
    for epoch, one in enumerate(history):
        plateau.step(epoch, one)
        found.append(rate(schedule))
    return found


@each("monitor", ["score", "loss"])
@each("mode", ["min", "max"])
@each("threshold_mode", ["rel", "abs"])
def test_the_rate_stays_while_the_model_improves_and_falls_when_it_does_not(
    monitor: Any, mode: str, threshold_mode: str
) -> None:
    if (monitor, mode, threshold_mode) == ("loss", "max", "rel"):
        return  # refused, see below
    better = [results(0.1 * n, 1 / n) for n in range(1, 6)]
    options = {"threshold_mode": threshold_mode}
    assert rates(scheduler(mode, **options), better, monitor) == [1.0] * 5
    flat = [results(0.5, 1.0)] * 4
    assert rates(scheduler(mode, **options), flat, monitor) == [1.0, 0.5, 0.25, 0.125]
    assert rates(scheduler(mode, **options), better[::-1], monitor)[-1] < 1.0


def test_a_minimised_quantity_is_the_weighted_validation_loss() -> None:
    schedule = scheduler("min")
    Plateau(schedule, "score", MODEL.tasks).step(0, results(loss=3.0))
    assert schedule.best == pytest.approx((2 * 3.0 + 3.0) / 2)


def test_a_maximised_quantity_is_the_score() -> None:
    schedule = scheduler("max")
    rates(schedule, [results(0.5), results(0.6)])
    assert schedule.best == pytest.approx(0.2)


def test_a_user_s_function_is_maximised() -> None:
    schedule = scheduler("max")
    rates(schedule, [results(0.5), results(0.6)], lambda found: found["a"]["accuracy"])
    assert schedule.best == pytest.approx(0.6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 1).map(lambda x: round(x, 3)), min_size=1, max_size=8), st.sampled_from([1e-3, 1e6]))
def test_no_unit_of_a_metric_changes_the_rate(history: list[float], unit: float) -> None:
    plain = rates(scheduler("max"), [results(0.5, b=b) for b in history])
    assert rates(scheduler("max"), [results(0.5, b=b * unit) for b in history]) == plain


def test_the_registry_s_own_reduces_the_rate_when_no_epoch_is_better() -> None:
    for monitor in ("score", "loss"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = SCHEDULERS.build("plateau", optimizer, 10, patience=0, factor=0.5)
        assert isinstance(schedule, ReduceLROnPlateau)
        history = [results(0.5, 1.0), results(0.5 + 1e-6, 1.0 - 1e-6), results(0.5, 1.0)]
        assert rates(schedule, history, monitor) == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_an_epoch_with_less_defined_does_not_step(mode: str) -> None:
    schedule = scheduler(mode)
    gap = results(math.nan, math.nan)
    partial_gap = {**gap, "b": {"loss": 99.0, "r2": -99.0}}
    with pytest.warns(MetricWarning, match=r"epoch [23]: ReduceLROnPlateau was not stepped, because '\w+' of task 'a'"):
        found = rates(schedule, [results(0.5, 1.0), partial_gap, gap, results(0.6, 0.9)])
    assert found == [1.0] * 4
    assert schedule.last_epoch == 2


def test_where_more_is_defined_than_before_the_comparison_begins_anew() -> None:
    schedule = scheduler("max")
    with_gap = {**results(0.5), "a": {"loss": math.nan, "accuracy": math.nan}}
    higher = {**with_gap, "b": {"loss": 1.0, "r2": 5.0}}
    assert rates(schedule, [with_gap, higher, results(0.5), results(0.5)]) == [1.0, 1.0, 1.0, 0.5]


def test_a_comparison_that_torch_makes_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ParameterError, match="Use mode='min'"):
        Plateau(scheduler("max"), "loss", MODEL.tasks)


def test_a_plateau_survives_a_checkpoint() -> None:
    history = [results(0.5), results(0.4), results(0.6), results(0.55)]
    whole = scheduler("max")
    expected = rates(whole, history)
    first = scheduler("max")
    before = Plateau(first, "score", MODEL.tasks)
    before.step(0, history[0])
    second = scheduler("max")
    second.load_state_dict(first.state_dict())
    after = Plateau(second, "score", MODEL.tasks)
    after.load_state_dict(before.state_dict())
    for epoch in (1, 2, 3):
        after.step(epoch, history[epoch])
    assert rate(second) == expected[-1]
    assert second.best == whole.best


def test_a_trainer_feeds_its_scheduler_by_mode() -> None:
    model = shared(a=0.0, b=0.0)  # never moves, so that no epoch is better than the first
    for mode in ("min", "max"):
        trainer = quiet(
            model,
            optimizer=partial(torch.optim.SGD, lr=0.8),
            scheduler=partial(ReduceLROnPlateau, mode=mode, patience=0, factor=0.5),
            epochs=4,
        )
        trainer.fit(loader(), loader(20, seed=2, batch_size=20, shuffle=False))
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.8 / 8), mode


def test_a_rate_that_falls_with_the_loss_does_not_fall_while_the_model_learns() -> None:
    """The issue's case: the scheduler's default mode, on a problem that gets better in every epoch."""
    trainer = quiet(
        optimizer=partial(torch.optim.SGD, lr=0.02), scheduler=partial(ReduceLROnPlateau, patience=0), epochs=5
    )
    trainer.fit(loader(160, batch_size=16), loader(100, seed=2, batch_size=100))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
