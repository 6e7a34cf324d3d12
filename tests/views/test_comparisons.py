"""Drawings that compare methods: what is on the axes is what the figures say."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sparsemtl.errors import ParameterError
from sparsemtl.study.results import StudyResults
from sparsemtl.views.comparisons import Ranked, bars_floor, draw_profiles, draw_ranks, draw_task_bars


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_critical_difference_diagram_has_every_rank_and_bar(ax) -> None:
    ranked = [Ranked("best", 0, 1.2), Ranked("next", 1, 1.9), Ranked("last", 2, 2.9)]
    draw_ranks(ax, ranked, [("best", "next"), ("next", "last")], 1.1)
    assert {"1", "2", "3", "critical difference 1.10", "best  1.20", "next  1.90", "2.90  last"} == set(texts(ax))
    dots = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
    assert dots == [1.2, 1.9, 2.9]
    bars = [line.get_xdata() for line in ax.get_lines() if line.get_linewidth() == 4]
    assert [tuple(bar) for bar in bars] == [pytest.approx((1.184, 1.916)), pytest.approx((1.884, 2.916))]
    (length,) = {tuple(line.get_xdata()) for line in ax.get_lines() if tuple(line.get_ydata()) == (0.85, 0.85)}
    assert length == (1, 2.1)


def test_profiles_are_steps_and_logarithmic_over_decades(ax) -> None:
    draw_profiles(ax, [0.0, 2.0], {"a": [0.5, 1.0]}, {"a": 0})
    (line,) = ax.get_lines()
    assert (line.get_drawstyle(), list(line.get_ydata())) == ("steps-post", [0.5, 1.0, 1.0])
    assert ax.get_xscale() == "linear"
    draw_profiles(ax, [0.0, 200.0], {"a": [0.5, 1.0]}, {"a": 0})
    assert ax.get_xscale() == "symlog"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "10", "100"]


def test_bars_stand_in_groups_by_task_with_gaps_for_missing_figures(ax) -> None:
    nan = float("nan")
    draw_task_bars(
        ax, ["x", "y"], {"a": [0.5, 1.0], "b": [nan, 0.8]}, {"a": [0.1, nan], "b": [nan, 0.05]}, {"a": 0, "b": 1}
    )
    heights = [bar.get_height() for bar in ax.patches]
    assert heights[:2] == [0.5, 1.0]
    assert heights[3] == 0.8
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y"]
    assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("low", "high", "floor"), [(0.1, 0.9, 0.0), (0.9, 1.0, 0.87), (-1.0, 1.0, -1.08), (0.0, 0.0, 0.0)]
)
def test_the_axis_of_bars_begins_at_zero_unless_all_are_close(low: float, high: float, floor: float) -> None:
    assert bars_floor(low, high) == pytest.approx(floor)


def results() -> StudyResults:
    rows = [
        (f"{method}{seed}", method, seed, split, task, metric, True, value + seed / 10 + (task == "b") / 7)
        for method, value in (("stl", 0.5), ("a", 0.6), ("b", 0.4), ("c", 0.7))
        for seed in (0, 1)
        for split in ("validation", "test")
        for task, metric in (("a", "accuracy"), ("b", "accuracy"))
    ]
    columns = ["run", "method", "seed", "split", "task", "metric", "higher_is_better", "value"]
    return StudyResults.of(pd.DataFrame(rows, columns=columns), baseline="stl")


def test_a_study_draws_its_comparisons(ax) -> None:
    study = results()
    assert study.plot("ranks", ax=ax) is ax
    assert {"c  1.00", "a  2.00", "3.00  b"} < set(texts(ax))
    lines = study.plot("profiles").get_lines()
    assert [line.get_label() for line in lines] == ["stl", "a", "b", "c"]
    assert len(study.plot("tasks").patches) == 8


def test_what_cannot_be_drawn_is_named() -> None:
    study = results()
    with pytest.raises(ParameterError, match=r"unknown task 'rank'\. Did you mean 'ranks'"):
        study.plot("rank")
    mixed = StudyResults.of(study.frame.assign(metric=study.frame["task"].map({"a": "accuracy", "b": "r2"})))
    with pytest.raises(ParameterError, match=r"several primary metrics: accuracy, r2\. Draw one task: plot\('a'\)"):
        mixed.plot("tasks")
