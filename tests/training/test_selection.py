from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_toys import apart, shared, tasks

import sparsemtl as sm
from sparsemtl.errors import MetricWarning, ParameterError, SelectionError
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.monitors import Merit, RelativeChange
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.selection import Selection

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


SCORES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 100), min_size=1, max_size=12)


@settings(deadline=None)
@given(SCORES)
def test_the_first_of_the_best_epochs_is_kept(scores: list[float]) -> None:
    assert chosen(Selection(TOGETHER), scores) == scores.index(max(scores)) + 1


@settings(deadline=None)
@given(SCORES)
def test_an_epoch_is_an_improvement_only_if_it_beats_all_before(scores: list[float]) -> None:
    selection = Selection(TOGETHER)
    for epoch, score in enumerate(scores):
        better = all(score > earlier for earlier in scores[:epoch])
        assert selection.update(epoch, results(score, score)) == (["all"] if better else [])


@settings(deadline=None)
@given(SCORES, st.integers(0, 13))
def test_no_epoch_is_chosen_before_its_time(scores: list[float], after: int) -> None:
    late = scores[after:]
    expected = after + late.index(max(late)) + 1 if late else None
    assert chosen(Selection(TOGETHER, after=after), scores) == expected


@settings(deadline=None)
@given(SCORES)
def test_staleness_counts_the_epochs_since_the_last_improvement(scores: list[float]) -> None:
    selection = Selection(TOGETHER)
    chosen(selection, scores)
    assert selection.stale(len(scores) - 1) == len(scores) - 1 - scores.index(max(scores))


def test_nothing_is_stale_before_the_first_choice() -> None:
    assert Selection(shared()).stale(7) == 0
    assert Selection(shared()).best_epoch("a") is None


# The score


def error_task(name: str = "b") -> sm.Task:
    """A task whose primary metric is lower when better."""
    from torchmetrics.regression import MeanAbsoluteError

    return sm.Regression(name, metrics={"mae": MeanAbsoluteError()})


def with_error() -> sm.SharedBottom:
    return sm.SharedBottom(shared().encoder, [*tasks("a"), error_task()])


def measured(a: float, b: float) -> Results:
    """Accuracy of "a", where higher is better, and error of "b", where lower is."""
    return {"a": {"loss": 1.0, "accuracy": a}, "b": {"loss": 1.0, "mae": b}}


WITH_ERROR = with_error()
HISTORIES = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 100)).map(lambda pair: (round(pair[0], 4), round(pair[1], 4))),
    min_size=1,
    max_size=10,
)


@settings(deadline=None)
@given(HISTORIES)
def test_the_score_is_the_mean_relative_change_against_the_first_epoch(history: list[tuple[float, float]]) -> None:
    valuation = RelativeChange(WITH_ERROR.tasks)
    (a0, b0), *_ = history
    for epoch, (a, b) in enumerate(history):
        valuation.observe(epoch, measured(a, b))
        merit = valuation.merit(measured(a, b), ("a", "b"))
        assert merit is not None
        assert merit.value == pytest.approx(((a - a0) / a0 - (b - b0) / b0) / 2, abs=1e-11, rel=1e-11)


@settings(deadline=None)
@given(HISTORIES, st.sampled_from([1e-6, 1e-3, 0.3048, 0.1, 7.0, 1000.0, 1e9]), st.booleans())
def test_no_unit_of_a_metric_changes_what_is_chosen(
    history: list[tuple[float, float]], unit: float, apart_: bool
) -> None:
    """Metres or millimetres: the same epochs are improvements, so the same one is kept and patience ends the same."""
    plain, scaled = Selection(WITH_ERROR, apart=apart_), Selection(WITH_ERROR, apart=apart_)
    for epoch, (a, b) in enumerate(history):
        assert plain.update(epoch, measured(a, b)) == scaled.update(epoch, measured(a, b * unit))
        assert plain.stale(epoch) == scaled.stale(epoch)
    assert plain.best_epoch("b") == scaled.best_epoch("b")


def test_a_gain_of_one_task_is_not_outweighed_by_the_unit_of_another() -> None:
    """The issue's case: 0.2 % less error in a large unit against 21 % less accuracy."""
    selection = Selection(WITH_ERROR)
    assert selection.update(0, measured(0.48, 4000.0)) == ["all"]
    assert selection.update(1, measured(0.38, 3992.0)) == []


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_a_reference_of_zero_is_scaled_by_the_first_value_that_is_not(values: list[int]) -> None:
    values = [0, *values]
    valuation = RelativeChange({"b": error_task()})
    scale = next((abs(v) for v in values if v), None)
    for epoch, value in enumerate(values):
        found = {"b": {"loss": 1.0, "mae": -float(value)}}
        valuation.observe(epoch, found)
        merit = valuation.merit(found, ("b",))
        assert merit is not None
        assert merit.value == pytest.approx(value / scale if scale and value else 0.0)
    assert valuation.references["b"].scale == scale


@settings(deadline=None)
@given(st.lists(st.floats(-10, 1, exclude_max=True), min_size=1, max_size=8))
def test_r2_changes_as_the_variance_that_is_left_unexplained(values: list[float]) -> None:
    """As a task whose metric is 1 - R², lower is better."""
    explained = RelativeChange({"b": tasks("b")[0]})
    left = RelativeChange({"b": error_task()})
    for epoch, value in enumerate(values):
        for valuation, metric, number in ((explained, "r2", value), (left, "mae", 1 - value)):
            valuation.observe(epoch, {"b": {"loss": 1.0, metric: number}})
        merits = (
            explained.merit({"b": {"loss": 1.0, "r2": value}}, ("b",)),
            left.merit({"b": {"loss": 1.0, "mae": 1 - value}}, ("b",)),
        )
        assert merits[0] is not None
        assert merits[1] is not None
        assert merits[0].value == pytest.approx(merits[1].value, rel=1e-9, abs=1e-11)


def test_a_first_r2_close_to_zero_does_not_decide_alone() -> None:
    selection = Selection(TOGETHER)
    selection.update(0, results(0.80, 0.001))
    selection.update(1, results(0.90, 0.600))
    assert selection.update(2, results(0.40, 0.605)) == []  # half of the accuracy is worth more than 0.005 of R²


def test_the_reference_is_of_the_first_epoch_that_can_be_chosen() -> None:
    selection = Selection(WITH_ERROR, after=2)
    for epoch, values in enumerate([(0.1, 9.0), (0.2, 8.0), (0.5, 4.0), (0.75, 4.0)]):
        selection.update(epoch, measured(*values))
    said = selection.summary()["references"]
    assert said["a"] == {"metric": "accuracy", "value": 0.5, "scale": 0.5, "epoch": 3}
    assert said["b"] == {"metric": "mae", "value": 4.0, "scale": 4.0, "epoch": 3}
    assert selection.best["all"].merit.value == pytest.approx(0.25)


# Other monitors


def test_the_loss_is_monitored_with_the_tasks_weights() -> None:
    selection = Selection(shared(a=2.0, b=1.0), "loss")
    selection.update(0, results(loss_a=0.5, loss_b=3.0))
    assert selection.best["all"].merit.value == pytest.approx(-(2 * 0.5 + 3.0) / 2)
    assert selection.update(1, results(loss_a=0.5, loss_b=2.9)) == ["all"]


def test_a_function_of_the_results_may_choose() -> None:
    def worst(found: Results) -> float:
        return min(found["a"]["accuracy"], found["b"]["r2"])

    selection = Selection(shared(), worst)
    assert selection.update(0, results(0.5, 0.4)) == ["all"]
    assert selection.update(1, results(0.9, 0.3)) == []
    assert selection.update(2, results(0.41, 0.41)) == ["all"]
    assert "worst" in selection.summary()["rule"]
    assert selection.monitor == "worst"


def test_a_function_that_gives_no_number_is_refused() -> None:
    with pytest.raises(ParameterError, match="`monitor`: <lambda> must return a number, got 'good'"):
        Selection(shared(), lambda _: "good").update(0, results())  # type: ignore[arg-type, return-value]


def test_a_function_sees_one_task_s_results_where_tasks_are_chosen_apart() -> None:
    seen: list[set[str]] = []

    def noted(found: Results) -> float:
        seen.append(set(found))
        return 1.0

    Selection(apart(), noted).update(0, results())
    assert seen == [{"a"}, {"b"}]


def test_a_metric_that_should_be_low_counts_negative() -> None:
    selection = Selection(WITH_ERROR)
    facts = metric_facts(error_task())
    assert (facts.primary, facts.directions["mae"]) == ("mae", False)
    assert selection.update(0, measured(0.5, 2.0)) == ["all"]
    assert selection.update(1, measured(0.5, 3.0)) == []
    assert selection.update(2, measured(0.5, 1.0)) == ["all"]


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


# Undefined numbers


@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_a_task_that_is_never_defined_is_left_out_with_a_warning(undefined: float) -> None:
    selection = Selection(shared())
    with pytest.warns(MetricWarning, match="epoch 1: 'accuracy' of task 'a' is undefined on validation data") as told:
        better = [selection.update(epoch, results(undefined, b)) for epoch, b in enumerate([0.5, 0.9, 0.7])]
    assert better == [["all"], ["all"], []]
    assert len(told) == 1
    assert selection.summary()["undefined"] == [{"task": "a", "metric": "accuracy", "epochs": [1, 2, 3]}]


def test_epochs_are_compared_over_the_same_tasks_only() -> None:
    selection = Selection(shared())
    assert selection.update(0, results(0.5, 0.5)) == ["all"]
    with pytest.warns(MetricWarning, match="epoch 2"):
        assert selection.update(1, results(math.nan, 0.99)) == []  # its mean over less is no gain
    assert selection.update(2, results(0.4, 0.5)) == []
    assert selection.update(3, results(0.5, 0.51)) == ["all"]
    with pytest.warns(MetricWarning, match="epoch 5"):  # a new stretch is said anew
        selection.update(4, results(math.nan, 0.99))


def test_an_epoch_that_covers_more_tasks_is_preferred() -> None:
    selection = Selection(shared())
    with pytest.warns(MetricWarning):
        assert selection.update(0, results(math.nan, 0.9)) == ["all"]
    assert selection.update(1, results(0.3, 0.1)) == ["all"]
    assert selection.update(2, results(0.3, 0.05)) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9, math.nan]), st.sampled_from([0.1, 0.5, 0.9, math.nan]))))
@pytest.mark.filterwarnings("ignore::sparsemtl.errors.MetricWarning")
def test_the_kept_epoch_is_never_beaten_by_one_that_covers_the_same(history: list[tuple[float, float]]) -> None:
    selection = Selection(TOGETHER)
    merits: dict[int, Merit] = {}
    for epoch, pair in enumerate(history):
        selection.update(epoch, results(*pair))
        merit = selection._valuation.merit(results(*pair), ("a", "b"))
        if merit is not None:
            merits[epoch] = merit
    assert bool(selection.best) == bool(merits)
    if merits:
        kept = selection.best["all"]
        assert len(kept.merit.tasks) == max(len(merit.tasks) for merit in merits.values())
        assert all(m.value <= kept.merit.value for m in merits.values() if m.tasks == kept.merit.tasks)


def test_an_epoch_of_which_nothing_is_defined_is_never_kept() -> None:
    selection = Selection(shared())
    with pytest.warns(MetricWarning):
        assert selection.update(0, results(math.nan, math.nan)) == []
    assert selection.update(1, results(-5.0, -5.0)) == ["all"]
    with pytest.warns(MetricWarning):
        assert selection.update(2, results(math.nan, math.inf)) == []
    assert selection.best_epoch("a") == 2


def test_nothing_left_to_choose_by_is_an_error_that_names_it() -> None:
    selection = Selection(apart())
    with pytest.warns(MetricWarning):
        selection.update(0, results(0.5, math.nan))
    with pytest.raises(SelectionError, match=r"any epoch.*Undefined: 'r2' of task 'b' \(epoch 1\)"):
        selection.check()


def test_a_network_that_computes_nothing_ends_the_run_at_once() -> None:
    selection = Selection(shared())
    nothing = results(math.nan, math.nan, loss_a=math.nan, loss_b=math.nan)
    with pytest.warns(MetricWarning), pytest.raises(SelectionError, match="in epoch 1"):
        selection.update(0, nothing)


@pytest.mark.parametrize("monitor", ["test", "test/score", "test_loss", "a/test/accuracy"])
def test_test_data_is_refused_as_a_monitor(monitor: Any) -> None:
    with pytest.raises(
        ParameterError, match=r"on validation data, got '.*'\. Test data only reports; it never chooses"
    ):
        Selection(shared(), monitor)


@pytest.mark.parametrize("monitor", ["accuracy", "train", ""])
def test_an_unknown_monitor_is_refused(monitor: Any) -> None:
    with pytest.raises(
        ParameterError, match=r"must be 'score', 'loss' or a function .* on validation data, got '.*'\.$"
    ):
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
