"""Drawings: what is on the axes is what the value holds."""

from __future__ import annotations

import math

import matplotlib as mpl

mpl.use("Agg")

import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

import sparsemtl as sm
from sparsemtl.errors import MaskError, MissingExtraError, ParameterError
from sparsemtl.storage.metrics import MetricRow, metrics_frame
from sparsemtl.study.results import StudyResults
from sparsemtl.training.evaluation.results import Results
from sparsemtl.views import plots


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


MASKS = sm.TaskMasks(
    {
        "a": {"x.0.weight": torch.tensor([True, False]), "x.1.weight": torch.tensor([True] * 4)},
        "b": {"x.0.weight": torch.tensor([True, True]), "x.1.weight": torch.tensor([False] * 4)},
    }
)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_masks_draw_their_density_per_layer_and_task(ax) -> None:
    assert MASKS.plot(ax=ax) is ax
    assert texts(ax) == ["0.50", "1.00", "1.00", "0.00"]
    assert ticks(ax.yaxis) == ["x.0", "x.1"]
    assert ticks(ax.xaxis) == ["a", "b"]


def test_overlaps_draw_either_measure(ax) -> None:
    overlap = MASKS.overlap()
    overlap.plot("containment", ax=ax)
    assert texts(ax) == [f"{value:.2f}" for value in overlap.containment.flatten().tolist()]
    assert overlap.plot() is not ax
    with pytest.raises(MaskError, match=r"unknown measure 'jacard'\. Did you mean 'jaccard'"):
        overlap.plot("jacard")  # type: ignore[arg-type]


def test_many_cells_have_a_colour_bar_in_place_of_values(ax) -> None:
    masks = sm.TaskMasks({"a": {f"w{i}": torch.ones(1, dtype=torch.bool) for i in range(201)}})
    masks.plot(ax=ax)
    assert not ax.texts
    assert len(ax.figure.axes) == 2


def history():
    rows = [
        MetricRow(epoch, epoch, split, task, name, value)
        for epoch in (1, 2)
        for task, value in (("a", 1.0 / epoch), ("b", 2.0 / epoch))
        for split, name in (("train", "loss"), ("validation", "loss"), ("validation", "accuracy"), ("test", "loss"))
    ]
    return metrics_frame([*rows, MetricRow(1, 1, "run", "", "lr", 0.1)])


def test_a_history_draws_one_line_per_task_and_split(ax) -> None:
    assert history().plot(ax=ax) is ax
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.get_lines()}
    assert lines == {
        "a, train": [1.0, 0.5], "a, validation": [1.0, 0.5], "b, train": [2.0, 1.0], "b, validation": [2.0, 1.0],
    }  # fmt: skip
    assert ax.get_xlabel() == "epoch"
    assert ax.get_ylabel() == "loss"
    colours = [line.get_color() for line in ax.get_lines()]
    assert colours[0] == colours[1] != colours[2]


def test_a_selection_of_a_history_draws_other_metrics(ax) -> None:
    history().query("task == 'b'").plot(metric="accuracy", ax=ax)
    (line,) = ax.get_lines()
    assert line.get_label() == "b"
    history().plot(metric="lr")
    with pytest.raises(ParameterError, match=r"unknown metric 'acuracy'\. Did you mean 'accuracy'"):
        history().plot(metric="acuracy")


def test_a_history_is_a_frame_and_pandas_draws_it_if_asked(ax) -> None:
    frame = history()
    assert isinstance(frame, pd.DataFrame)
    frame.plot(x="epoch", y="value", ax=ax, kind="scatter")
    assert ax.collections
    assert frame.plot.line(x="epoch", y="value") is not ax
    assert frame[["epoch"]].max().item() == 2


def test_results_draw_their_primary_metric(ax) -> None:
    results = Results({"a": {"loss": 1.0, "accuracy": 0.75}, "b": {"loss": 2.0, "r2": math.nan}})
    results.plot(ax=ax)
    assert ticks(ax.yaxis) == ["a: accuracy", "b: r2"]
    assert texts(ax) == ["0.75", "–"]
    plain = Results({"a": {"loss": 1.0}}).plot()
    assert plain.get_xlabel() == "loss"
    assert texts(results.plot("accuracy")) == ["0.75"]
    with pytest.raises(ParameterError, match="unknown metric 'f1'"):
        results.plot("f1")


def study(baseline: str | None) -> StudyResults:
    rows = [
        (f"{method}{seed}", method, seed, split, task, "accuracy", True, value + seed / 10)
        for method, value in (("stl", 0.5), ("fisher", 0.6))
        for seed in (0, 1)
        for split in ("validation", "test")
        for task in ("a", "b")
    ]
    columns = ["run", "method", "seed", "split", "task", "metric", "higher_is_better", "value"]
    return StudyResults.of(pd.DataFrame(rows, columns=columns), baseline=baseline)


def test_a_study_draws_changes_against_its_baseline(ax) -> None:
    study("stl").plot(ax=ax)
    assert ticks(ax.yaxis) == ["fisher"]
    assert ax.get_xlabel() == "Δm % against stl"
    (point,) = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"]
    assert point == pytest.approx(100 * (0.1 / 0.5 + 0.1 / 0.6) / 2)


def test_a_study_draws_a_task(ax) -> None:
    study(None).plot("a", ax=ax)
    assert texts(ax) == ["0.55", "0.65"]
    with pytest.raises(ParameterError, match=r"no setting has a change.*plot\(task='a'\)"):
        study(None).plot()
    with pytest.raises(ParameterError, match="unknown task 'c'"):
        study(None).plot("c")


def test_axes_must_be_axes() -> None:
    with pytest.raises(ParameterError, match="must be axes of matplotlib"):
        MASKS.plot(ax=plt.figure())  # type: ignore[arg-type]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.axes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsemtl\[report\]'"):
        MASKS.plot()
    assert plots.NOTEBOOK.series(11) == "C1"
