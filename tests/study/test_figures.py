"""Figures per seed and setting, against searches in the frame."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparsemtl.study.figures import spread
from sparsemtl.study.results import StudyResults, per_seed, run_level, task_level


@pytest.fixture(scope="module")
def results() -> StudyResults:
    """Two tasks, of which one method lacks one, a value that is missing, a seed that one method lacks, and times."""
    rows = [
        ("mtl", 1, "test", "b", "accuracy", 0.5),
        ("mtl", 0, "test", "a", "accuracy", 0.7),
        ("mtl", 0, "test", "b", "accuracy", math.nan),
        ("mtl", 0, "test", "b", "loss", 3.0),
        ("mtl", 1, "test", "a", "accuracy", 0.1),
        ("mtl", 0, "validation", "a", "accuracy", 0.9),
        ("stl", 0, "test", "a", "accuracy", 0.3),
        ("stl", 2, "test", "a", "loss", 1.0),
        ("mtl", 0, "run", "", "seconds", 4.0),
        ("mtl", 1, "run", "", "seconds", 8.0),
    ]
    frame = pd.DataFrame(rows, columns=["method", "seed", "split", "task", "metric", "value"])
    frame["run"] = frame["method"] + "_" + frame["seed"].astype(str)
    return StudyResults.of(frame.assign(higher_is_better=frame["metric"] == "accuracy"))


METRICS = [{"a": "accuracy", "b": "accuracy"}, {"b": "loss", "a": "loss"}, {"b": "accuracy"}, {"a": "none"}]


@pytest.mark.parametrize("split", ["test", "validation", "none"])
@pytest.mark.parametrize("metrics", METRICS)
def test_figures_are_those_of_a_pivot_of_the_frame(results: StudyResults, metrics: dict[str, str], split: str) -> None:
    frame = results.frame
    rows = frame[(frame["split"] == split) & (frame["metric"] == frame["task"].map(metrics))]
    expected = rows.pivot(index=["setting", "seed"], columns="task", values="value").reindex(columns=list(metrics))
    exact = {"check_exact": True, "check_dtype": bool(len(rows))}  # frames without rows have no numbers
    found = per_seed(results, metrics, split)
    assert list(found.index) == list(expected.index)
    pd.testing.assert_frame_equal(found, expected, check_index_type=False, **exact)
    by_setting, level = spread(expected, results.settings), task_level(results, metrics, split)
    for one, other in ((by_setting.mean, level.mean), (by_setting.std, level.std), (by_setting.n, level.n)):
        pd.testing.assert_frame_equal(other, one, **exact)


def test_a_figure_of_runs_is_missing_where_no_run_has_it(results: StudyResults) -> None:
    seconds, none = run_level(results), run_level(results, "macs")
    assert seconds.mean.loc["mtl", "seconds"] == 6.0
    assert math.isnan(seconds.mean.loc["stl", "seconds"])
    assert seconds.n["seconds"].to_dict() == {"mtl": 2, "stl": 0}
    assert none.mean["macs"].isna().all()
    assert none.n["macs"].tolist() == [0, 0]
