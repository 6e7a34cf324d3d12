"""Every weak point appears where its cause is, and only there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sparsemtl.cli.study_table import PrintedTable, show_study
from sparsemtl.storage.text_files import write_json
from sparsemtl.study.evidence import weak_points
from sparsemtl.study.results import StudyResults

LRS = (0.01, 0.1, 1.0)
GAIN = {"stl": 0.0, "mtl": 0.05, "fisher": 0.10}


def make_study(folder: Path, name: str = "s", *, lrs: tuple[float, ...] = LRS, seeds: int = 3) -> Path:
    """A study of three methods and two tasks whose evidence is sound: the middle learning rate is the best."""
    rows = []
    for method, gain in GAIN.items():
        for lr in lrs:
            for seed in range(seeds):
                run = f"{method}-{lr}-{seed}"
                value = 0.6 + gain - 0.1 * (lr != 0.1) + 0.001 * seed
                write_run(folder / "runs" / run, value, method, seed)
                for split in ("validation", "test"):
                    for task, metric in (("a", "accuracy"), ("b", "r2")):
                        rows.append((run, method, seed, lr, split, task, metric, True, value + 0.0005 * seed * gain))
    columns = ["run", "method", "seed", "optimizer.lr", "split", "task", "metric", "higher_is_better", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "results.csv", index=False)
    about = {"name": name, "baseline": "stl", "methods": list(GAIN), "grid": ["optimizer.lr"], "notes": []}
    write_json(folder / "study.json", {**about, "tune": ["optimizer.lr"]})
    return folder


def write_run(path: Path, value: float, method: str, seed: int) -> None:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        f"seed: {seed}\nweights: {{}}\ndata:\n  name: digits\n  seed: null\nsharing:\n  x: 1\n"
    )
    tasks = {
        "a": {"kind": "Classification", "classes": ["x", "y"], "primary": "accuracy", "best_epoch": 7},
        "b": {"kind": "Regression", "classes": None, "primary": "r2", "best_epoch": 7},
    }
    for entry, metric in ((tasks["a"], "recall_macro"), (tasks["b"], "r2")):
        entry["test"] = {metric: value}
    summary = {"epochs": 9, "status": "finished", "tasks": tasks, "independent_tasks": method == "stl"}
    write_json(path / "summary.json", {**summary, "axes": {"balancing": "mean"}})
    lines = ["epoch,step,split,task,metric,value", "1,1,train,a,loss,0.7", "1,1,train,b,loss,0.9"]
    (path / "metrics.csv").write_text("\n".join([*lines, "2,2,train,b,loss,0.0001", ""]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def edit(folder: Path, runs: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the summaries of the runs that match a pattern."""
    for path in folder.glob(f"runs/{runs}/summary.json"):
        summary = json.loads(path.read_text())
        change(summary)
        write_json(path, summary)


def edit_results(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(folder / "results.csv")).to_csv(folder / "results.csv", index=False)


def weak(folder: Path) -> list[str]:
    return StudyResults.read(folder).warnings()


def test_a_sound_study_has_no_weak_point(folder: Path) -> None:
    assert weak(folder) == []
    assert "weak" not in StudyResults.read(folder).summary()


def test_a_baseline_that_learned_nothing_is_named_with_its_figure(folder: Path) -> None:
    def die(summary: dict[str, Any]) -> None:
        summary["tasks"]["a"]["test"]["recall_macro"] = 0.505
        summary["tasks"]["b"]["test"]["r2"] = 0.01

    edit(folder, "stl-0.1-*", die)
    (point,) = weak(folder)
    assert point.startswith(
        "The baseline has learned nothing: stl on a (test recall_macro 0.505, by chance 0.5) and stl on b (test r2 "
        "0.01, at the labels' variance 0). Changes against it mean nothing."
    )
    edit(folder, "mtl-0.1-*", die)
    assert weak(folder)[1].startswith("A constant prediction is as good as mtl on a")


def test_figures_above_chance_and_one_dead_seed_of_three_are_none(folder: Path) -> None:
    edit(folder, "stl-0.1-*", lambda s: s["tasks"]["b"]["test"].update(r2=0.03))
    edit(folder, "stl-0.1-0", lambda s: s["tasks"]["a"]["test"].update(recall_macro=0.5))
    edit(folder, "stl-1.0-*", lambda s: s["tasks"]["a"]["test"].update(recall_macro=0.5))  # not chosen
    edit(folder, "mtl-0.1-*", lambda s: s["tasks"]["a"].update(kind="MultiLabel", test={"recall_macro": 0.1}))
    assert weak(folder) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("  name: digits\n  seed: 4\n", "All seeds have the same split (`data.seed: 4`): deviations and intervals are"),
        ("  name: celeba\n", "All seeds have the same split (celeba has no `seed`)"),
    ],
)
def test_one_split_for_all_seeds(folder: Path, data: str, words: str) -> None:
    for path in folder.glob("runs/*/config.yaml"):
        path.write_text(f"seed: 1\ndata:\n{data}")
    (point,) = weak(folder)
    assert point.startswith(words)
    assert "those of initialisation and batch order only" in point


def test_fewer_than_three_seeds(tmp_path: Path) -> None:
    points = weak(make_study(tmp_path, seeds=2))
    assert "Every method has fewer than 3 seeds (2): chance can decide." in points[0]
    edit_results(tmp_path, lambda rows: rows[(rows["seed"] == 0) | (rows["method"] != "mtl")])
    assert "3 seeds (2, 1)" in weak(tmp_path)[0]


def test_one_method_with_fewer_seeds_is_named(folder: Path) -> None:
    edit_results(folder, lambda rows: rows[(rows["seed"] == 0) | (rows["method"] != "mtl")])
    assert weak(folder)[0].startswith("mtl has fewer than 3 seeds (1)")


def test_a_best_epoch_that_is_the_last(folder: Path) -> None:
    edit(folder, "mtl-0.1-[01]", lambda s: s["tasks"]["b"].update(best_epoch=9))
    edit(folder, "stl-0.1-0", lambda s: s["tasks"]["b"].update(best_epoch=9))  # one of three
    edit(folder, "stl-1.0-*", lambda s: s["tasks"]["b"].update(best_epoch=9))  # not chosen
    assert weak(folder) == [
        "The best epoch is the last one: mtl (2 of 3 runs). Longer training may change the order: raise "
        "`training.epochs` above 9."
    ]


@pytest.mark.parametrize(
    ("lrs", "side", "more"), [((0.1, 1.0), "smallest", "smaller"), ((0.01, 0.1), "largest", "larger")]
)
def test_a_best_value_at_the_end_of_the_grid(tmp_path: Path, lrs: tuple[float, ...], side: str, more: str) -> None:
    (point,) = weak(make_study(tmp_path, lrs=lrs))
    tried = f"{lrs[0]:g}, {lrs[1]:g}"
    assert point == (
        f"The best value is at the end of its grid: `optimizer.lr` 0.1, the {side} of {tried}, for stl, mtl and "
        f"fisher. Add {more} values."
    )


def test_a_search_draws_values_and_has_no_end_of_a_grid(tmp_path: Path) -> None:
    found = StudyResults.read(make_study(tmp_path, lrs=(0.01, 0.1)))
    assert weak_points(replace(found, objectives=("delta_m",))) == []


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer.weight_decay", {0.01: 0.1, 0.1: 0.0, 1.0: 0.2}),  # nothing is below 0
        ("sharing.keep", {0.01: 0.3, 0.1: 1.0, 1.0: 0.5}),  # nothing is above 1
        ("encoder.name", {0.01: "a", 0.1: "b", 1.0: "c"}),  # words have no order
    ],
)
def test_a_grid_that_cannot_go_on_has_no_end(folder: Path, key: str, values: Mapping[float, Any]) -> None:
    edit_results(
        folder, lambda rows: rows.assign(**{key: rows["optimizer.lr"].map(values)}).drop(columns="optimizer.lr")
    )
    write_json(folder / "study.json", {"name": "s", "baseline": "stl", "methods": list(GAIN), "grid": [key]})
    assert weak(folder) == []


def test_a_difference_within_its_interval(folder: Path) -> None:
    def nearly(rows: pd.DataFrame) -> pd.DataFrame:
        own = (rows["method"] == "mtl") & (rows["split"] == "test")
        rows.loc[own, "value"] = 0.6 + rows["seed"].map({0: 0.02, 1: -0.02, 2: 0.01})
        return rows

    edit_results(folder, nearly)
    (point,) = weak(folder)
    assert point.startswith("No difference from stl is shown for mtl (−")
    assert "the 95 % interval of Δm holds zero" in point


def test_two_best_methods_within_their_interval(folder: Path) -> None:
    def nearly(rows: pd.DataFrame) -> pd.DataFrame:
        own = (rows["method"] == "mtl") & (rows["split"] == "test")
        rows.loc[own, "value"] = 0.7 + rows["seed"].map({0: 0.02, 1: -0.03, 2: 0.001})
        return rows

    edit_results(folder, nearly)
    (point,) = weak(folder)
    assert point.startswith(
        "The order of the best two is not shown: the 95 % interval of their difference holds zero, "
    )
    assert "fisher (−" in point
    assert "against mtl" in point


def losses(folder: Path, runs: str, b: float) -> None:
    for path in folder.glob(f"runs/{runs}/metrics.csv"):
        text = f"epoch,step,split,task,metric,value\n1,1,train,a,loss,0.7\n1,1,train,b,loss,{b}\n1,1,run,,lr,0.1\n"
        path.write_text(text)


def test_losses_of_unlike_scale(folder: Path) -> None:
    losses(folder, "*", 0.004)
    (point,) = weak(folder)
    assert point.startswith("Losses of unlike scale are added by mtl and fisher (first epoch of mtl:")
    assert "a 0.7, b 0.004" in point


def test_losses_that_weights_or_a_balancer_even_out(folder: Path) -> None:
    losses(folder, "*", 0.004)
    edit(folder, "mtl-*", lambda s: s["axes"].update(balancing="uncertainty"))
    for path in folder.glob("runs/fisher-*/config.yaml"):
        path.write_text(path.read_text().replace("weights: {}", "weights:\n  b: 100.0"))
    assert weak(folder) == []


def test_a_damaged_or_missing_record_is_no_evidence(folder: Path) -> None:
    (folder / "runs" / "mtl-0.1-0" / "metrics.csv").write_text("x,y\n1,2\n")
    (folder / "runs" / "fisher-0.1-0" / "metrics.csv").write_text("epoch,split,task,metric,value\n1,train,a,loss,x\n")
    edit(folder, "stl-*", lambda s: s.pop("epochs"))
    (folder / "runs" / "stl-0.1-1" / "config.yaml").unlink()
    assert weak(folder) == []


def test_results_of_a_frame_are_judged_by_their_figures(folder: Path) -> None:
    edit(folder, "*", lambda s: s["tasks"]["b"].update(best_epoch=9))
    frame = pd.read_csv(folder / "results.csv")
    assert weak_points(StudyResults.of(frame, baseline="stl")) == []
    (point,) = weak_points(StudyResults.of(frame[frame["optimizer.lr"] >= 0.1], baseline="stl"))
    assert "at the end of its grid" in point


def test_several_studies_are_judged_one_by_one(tmp_path: Path) -> None:
    first, second = make_study(tmp_path / "x", "first"), make_study(tmp_path / "y", "second", seeds=2)
    points = StudyResults.read(first, second).warnings()
    assert points
    assert all(point.startswith("second: ") for point in points)


def test_weak_points_are_printed_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_study(PrintedTable("t", ["a", "seeds"], [["stl", "1", "2"]], "", ["Too few seeds [2]."]))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[-2:]] == [
        "The evidence of this study is weak:",
        "  - Too few seeds [2].",
    ]
