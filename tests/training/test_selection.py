from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_toys import apart, shared, tasks

import sparsemtl as sm
from sparsemtl.errors import ParameterError
from sparsemtl.training.evaluation import Results
from sparsemtl.training.selection import Selection, primary_of

TOGETHER = shared()


def results(a: float = 0.5, b: float = 0.5, **losses: float) -> Results:
    """Accuracy of "a", R² of "b", and losses, which are 1 by default."""
    return {
        "a": {"loss": losses.get("loss_a", 1.0), "accuracy": a, "f1_macro": 0.0},
        "b": {"loss": losses.get("loss_b", 1.0), "r2": b, "mse": 0.0, "mae": 0.0},
    }


def chosen(selection: Selection, scores: list[float]) -> int | None:
    """The epoch, from 1, that is kept after these scores of both tasks."""
    for epoch, score in enumerate(scores):
        selection.update(epoch, results(score, score))
    return selection.best_epoch("a")


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_the_first_of_the_best_epochs_is_kept(scores: list[float]) -> None:
    assert chosen(Selection(TOGETHER), scores) == scores.index(max(scores)) + 1


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_an_epoch_is_an_improvement_only_if_it_beats_all_before(scores: list[float]) -> None:
    selection = Selection(TOGETHER)
    for epoch, score in enumerate(scores):
        better = all(score > earlier for earlier in scores[:epoch])
        assert selection.update(epoch, results(score, score)) == (["all"] if better else [])


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(0, 13))
def test_no_epoch_is_chosen_before_its_time(scores: list[float], after: int) -> None:
    late = scores[after:]
    expected = after + late.index(max(late)) + 1 if late else None
    assert chosen(Selection(TOGETHER, after=after), scores) == expected


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12))
def test_staleness_counts_the_epochs_since_the_last_improvement(scores: list[float]) -> None:
    selection = Selection(TOGETHER)
    chosen(selection, scores)
    assert selection.stale(len(scores) - 1) == len(scores) - 1 - scores.index(max(scores))


def test_nothing_is_stale_before_the_first_choice() -> None:
    assert Selection(shared()).stale(7) == 0
    assert Selection(shared()).best_epoch("a") is None


def test_the_score_is_the_mean_of_the_primary_metrics() -> None:
    assert Selection(shared()).value(results(0.8, 0.2)) == pytest.approx(0.5)


def test_the_loss_is_monitored_with_the_tasks_weights() -> None:
    selection = Selection(shared(a=2.0, b=1.0), "loss")
    assert selection.value(results(loss_a=0.5, loss_b=3.0)) == pytest.approx(-(2 * 0.5 + 3.0) / 2)


def test_a_metric_that_should_be_low_counts_negative() -> None:
    from torchmetrics.regression import MeanAbsoluteError

    task = sm.Regression("b", metrics={"mae": MeanAbsoluteError()})
    selection = Selection(sm.SharedBottom(shared().encoder, [*tasks("a"), task]))
    assert primary_of(task) == ("mae", False)
    assert selection.update(0, {"a": {"accuracy": 0.0}, "b": {"mae": 2.0}}) == ["all"]
    assert selection.update(1, {"a": {"accuracy": 0.0}, "b": {"mae": 3.0}}) == []
    assert selection.update(2, {"a": {"accuracy": 0.0}, "b": {"mae": 1.0}}) == ["all"]


def test_independent_tasks_are_chosen_apart() -> None:
    selection = Selection(apart())
    assert selection.update(0, results(a=0.5, b=0.5)) == ["a", "b"]
    assert selection.update(1, results(a=0.4, b=0.9)) == ["b"]
    assert selection.update(2, results(a=0.7, b=0.8)) == ["a"]
    assert (selection.best_epoch("a"), selection.best_epoch("b")) == (3, 2)
    assert selection.stale(3) == 1


def test_tasks_that_share_are_chosen_together() -> None:
    selection = Selection(shared())
    selection.update(0, results(a=0.5, b=0.5))
    assert selection.update(1, results(a=0.4, b=0.9)) == ["all"]
    assert selection.best_epoch("a") == selection.best_epoch("b") == 2


@pytest.mark.parametrize("model", [shared("a"), apart("a")])
def test_a_single_task_is_chosen_with_its_whole_model(model: sm.MultiTaskModel) -> None:
    assert Selection(model).parts == {"all": ("a",)}


@pytest.mark.parametrize("first", [math.nan, -math.inf])
def test_any_epoch_is_better_than_an_undefined_one(first: float) -> None:
    selection = Selection(shared())
    assert selection.update(0, results(first, 0.5)) == ["all"]
    assert selection.update(1, results(first, 0.9)) == []
    assert selection.update(2, results(-5.0, -5.0)) == ["all"]
    assert selection.update(3, results(first, 9.0)) == []


@pytest.mark.parametrize("monitor", ["test", "test/score", "test_loss", "a/test/accuracy"])
def test_test_data_is_refused_as_a_monitor(monitor: Any) -> None:
    with pytest.raises(
        ParameterError, match=r"on validation data, got '.*'\. Test data only reports; it never chooses"
    ):
        Selection(shared(), monitor)


@pytest.mark.parametrize("monitor", ["accuracy", "train", ""])
def test_an_unknown_monitor_is_refused(monitor: Any) -> None:
    with pytest.raises(ParameterError, match=r"`monitor` must be 'score' or 'loss', on validation data, got '.*'\.$"):
        Selection(shared(), monitor)


def test_a_choice_survives_a_checkpoint() -> None:
    selection, other = Selection(apart()), Selection(apart())
    selection.update(0, results(a=0.5, b=0.5))
    selection.update(1, results(a=0.4, b=0.9))
    other.load_state_dict(selection.state_dict())
    assert other.best == selection.best
    selection.update(2, results(a=0.9, b=0.9))
    assert other.best_epoch("a") == 1
    assert other.update(2, results(a=0.45, b=0.95)) == ["b"]
