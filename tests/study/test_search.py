"""A search chooses values by Optuna, the same ones with any engine and after an interruption; tables take the best."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sparsemtl.errors import ConfigError, MissingExtraError, ParameterError
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study import runner
from sparsemtl.study.grid import Study, read_study
from sparsemtl.study.objectives import Score
from sparsemtl.study.pareto import objective_figures, pareto_front, pareto_table
from sparsemtl.study.pruning import PRUNED, epoch_scores
from sparsemtl.study.results import StudyResults
from sparsemtl.study.runner import run_study
from sparsemtl.study.schema import study_json_schema
from sparsemtl.study.search_options import Choices, Range, read_search, read_space

LR = {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}


def study_of(folder: Path, tiny: Any, search: Any, methods: Any = None, **more: Any) -> Study:
    base = {**tiny, "training": {"epochs": 2, "batch_size": 512, "measure_cost": False, **more.pop("training", {})}}
    source = {"base": base, "methods": methods or {"a": {}}, "seeds": [0], "search": search, **more}
    path = folder / "searched.yaml"
    path.write_text(dump_yaml(source), encoding="utf-8")
    return read_study(path)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["metric"] != "seconds"]


# Keys and values


def test_values_of_ranges_and_choices() -> None:
    space = read_space(
        {"a": {"low": 1, "high": 9, "step": 2}, "b": {"low": 1e-5, "high": 1.0, "log": True}, "c": [[4], "x"]}, "s"
    )
    assert space == {"a": Range(1, 9, False, 2), "b": Range(1e-5, 1.0, True), "c": Choices(([4], "x"))}
    assert (space["a"].whole, space["b"].whole) == (True, False)
    assert (space["b"].value(0.000123456), space["b"].value(0.99999), space["c"].value("[4]")) == (0.0001235, 1.0, [4])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"trails": 3}, r"unknown key of `search` 'trails'\. Did you mean 'trials'"),
        ({"optimizer.lr": [1]}, r"A searched key of the configuration stands under `search\.keys`"),
        ({"trials": 0}, r"search\.trials must be .* Got 0"),
        ({"keys": {"optimizer.lr": {"low": 1}}}, r"keys\.optimizer\.lr: expected a list of choices, or \{low: 0\.001"),
        ({"keys": {"a.b": {"low": 2, "high": 1}}}, "low must be below high, got 2 and 1"),
        ({"keys": {"a.b": {"low": 0, "high": 1, "log": True}}}, "a logarithmic range needs low above 0"),
        ({"keys": {"a.b": {"low": "x", "high": 1}}}, "low, high and step must be numbers"),
        ({"objective": ["macs", "macs"]}, "expected different names"),
        ({"objective": ["delta_m", "macs"], "pruner": "median"}, "expected none beside several objectives"),
        ({"objective": "macs", "pruner": "median"}, "expected none for 'macs', known only at the end"),
        ("x", r"`search` must be a mapping"),
    ],
)  # fmt: skip
def test_wrong_sections_are_refused_with_what_was_expected(section: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_search(section, "file.yaml")


def test_wrong_keys_and_values_are_refused_before_anything_is_run(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lrr"):
        study_of(tmp_path, tiny, {"keys": {"optimizer.lrr": [0.1]}})
    with pytest.raises(ConfigError, match=r"optimizer\.lr=-1"):
        study_of(tmp_path, tiny, {"keys": {"optimizer.lr": {"low": -1.0, "high": 1.0}}})
    with pytest.raises(ConfigError, match=r"is searched and has values in `grid`"):
        study_of(tmp_path, tiny, {"keys": LR}, grid={"optimizer.lr": [0.1]})
    with pytest.raises(ConfigError, match=r"`search` of a method needs a `search` of the study"):
        study_of(tmp_path, tiny, None, {"a": {"search": LR}})


def test_every_method_is_searched_at_every_value_of_its_grid_and_adds_keys(tmp_path: Path, tiny: Any) -> None:
    methods = {
        "a": {"grid": {"training.epochs": [1, 2]}},
        "b": {"sharing": "random", "search": {"sharing.keep": [0.3, 0.6]}},
    }
    study = study_of(tmp_path, tiny, {"keys": LR, "trials": 3}, methods)
    assert [(arm.label, sorted(arm.space)) for arm in study.arms] == [
        ("a, epochs 1", ["optimizer.lr"]),
        ("a, epochs 2", ["optimizer.lr"]),
        ("b", ["optimizer.lr", "sharing.keep"]),
    ]
    assert (study.runs, study.tune) == ((), ("optimizer.lr", "sharing.keep"))
    assert study_of(tmp_path, tiny, {"trials": 2}).arms == ()  # nothing to search: a plain study


def test_the_schema_of_studies_knows_the_keys_of_the_search() -> None:
    schema = study_json_schema()
    assert "trials" in schema["properties"]["search"]["anyOf"][0]["properties"]
    assert schema["required"] == ["methods"]
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema)
    good = {"methods": {"a": {}}, "base": {"encoder": "mlp"}, "search": {"keys": LR, "trials": 3}}
    assert check.is_valid(good)
    for bad in ({"search": {"trails": 3}}, {"search": {"keys": {"a": {"low": 1}}}}, {"base": {"encoder": "mpl"}}):
        assert not check.is_valid({**good, **bad})


# Running


@pytest.mark.slow
def test_a_search_resumed_after_an_interruption_is_the_uninterrupted_one(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    study = study_of(
        tmp_path,
        tiny,
        {"keys": LR, "trials": 5, "at_once": 2},
        {"stl": {}, "b": {"search": {"training.epochs": [1, 2]}}},
    )
    assert run_study(study, tmp_path / "whole", progress=False) == {}
    about = json.loads((tmp_path / "whole" / "study.json").read_text())
    assert (about["tune"], about["objectives"]) == (["optimizer.lr", "training.epochs"], ["delta_m"])
    real, count = runner.run, [0]

    def killed(*given: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] in (2, 5, 8):
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(runner, "run", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "parts", progress=False)
    run_study(study, tmp_path / "parts", progress=False)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    # one setting per method in the tables, the best one on validation data
    tables = (tmp_path / "whole" / "tables.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].split(",")[0].strip() for line in tables.splitlines() if line.startswith("|")][2:4] == [
        "stl",
        "b",
    ]
    # more trials go on from those that are there; anything else is another search
    before = rows(tmp_path / "parts")
    longer = study_of(
        tmp_path,
        tiny,
        {"keys": LR, "trials": 6, "at_once": 2},
        {"stl": {}, "b": {"search": {"training.epochs": [1, 2]}}},
    )
    run_study(longer, tmp_path / "parts", progress=False)
    grown = rows(tmp_path / "parts")
    assert len(grown) > len(before)
    assert all(row in grown for row in before)
    other = study_of(tmp_path, tiny, {"keys": LR, "trials": 6, "at_once": 2, "seed": 1}, {"stl": {}, "b": {}})
    with pytest.raises(ConfigError, match=r"holds a search of 'stl' with other keys, objectives, options or seeds"):
        run_study(other, tmp_path / "parts", progress=False)
    with pytest.raises(ConfigError, match=r"or seeds: search\.seed is 0 there and 1 here\. Only `search\.trials` may"):
        run_study(other, tmp_path / "parts", progress=False)


def test_failures_of_settings_are_recorded_and_the_search_goes_on(tmp_path: Path, tiny: Any) -> None:
    pytest.importorskip("optuna")
    search = {"keys": {"optimizer.lr": [0.01, 1e30]}, "trials": 4, "at_once": 4, "objective": "digit.loss"}
    assert run_study(study_of(tmp_path, tiny, search), tmp_path / "out", progress=False) == {}
    assert {row["optimizer.lr"] for row in rows(tmp_path / "out")} == {"0.01"}
    assert set(StudyFolder(tmp_path / "out").read_failures()) == {"a_lr-1e+30_seed-0"}
    alone = {**search, "keys": {"optimizer.lr": [1e30, 1e31]}, "trials": 2}
    same = study_of(tmp_path, tiny, search, training={"threads": 1, "checkpoint_every": 9})
    assert run_study(same, tmp_path / "out", progress=False) == {}  # no result depends on these keys
    changed = study_of(tmp_path, {**tiny, "optimizer": "sgd"}, search)
    with pytest.raises(ConfigError, match=r'config\.optimizer\.name is "adam" there and "sgd" here'):
        run_study(changed, tmp_path / "out", progress=False)
    failures = run_study(study_of(tmp_path, tiny, alone), tmp_path / "none", progress=False)
    assert list(failures) == ["a"]
    assert failures["a"].startswith("none of 2 settings has a result; the last: ")


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_hopeless_settings_are_pruned_and_stay_pruned(
    pruner: str, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    # settings 1 to 6 are good, all later ones are bad from their first epoch on
    lrs = iter([0.01, 0.012, 0.014, 0.016, 0.018, 0.02, *[1e-7] * 6])
    monkeypatch.setattr(optuna.samplers.RandomSampler, "sample_independent", lambda *_: next(lrs))
    search = {
        "keys": {"optimizer.lr": {"low": 1e-8, "high": 1.0}},
        "trials": 8,
        "at_once": 6,
        "pruner": pruner,
        "sampler": "random",
        "objective": "digit.loss",
    }
    study = study_of(tmp_path, tiny, search, seeds=[0, 1], training={"epochs": 4, "batch_size": 512})
    assert run_study(study, tmp_path / "out", progress=False) == {}
    missing = StudyFolder(tmp_path / "out").read_failures()
    if pruner == "median":
        assert set(missing) == {"a_lr-1e-07_seed-0", "a_lr-1e-07_seed-1"}
    assert all(reason.startswith(PRUNED) for reason in missing.values())
    assert not (tmp_path / "out" / "runs" / "a_lr-1e-07_seed-1").exists() or not missing
    called: list[str] = []
    monkeypatch.setattr(runner, "run", lambda *given, **options: called.append(str(given)))
    assert run_study(study, tmp_path / "out", progress=False) == {}
    assert called == []


def test_unknown_objectives_are_refused_before_the_folder_is_made(tmp_path: Path, tiny: Any) -> None:
    pytest.importorskip("optuna")
    for objective, message in (
        ("digit.acuracy", r"unknown metric of task 'digit' 'acuracy'\. Did you mean 'accuracy'"),
        ("dm", r"unknown objective 'dm'.*Known: delta_m, digit\.accuracy"),
        ("macs", r"'macs' needs `training\.measure_cost: true`, found false"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_study(study_of(tmp_path, tiny, {"keys": LR, "objective": objective}), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_mistakes_of_any_searched_method_are_raised_before_the_folder_is_made(tmp_path: Path, tiny: Any) -> None:
    pytest.importorskip("optuna")
    methods = {"a": {}, "b": {"sharing": "group-lasso"}}
    with pytest.raises(ParameterError, match=r"nothing to make sparse.*in run b_"):
        run_study(study_of(tmp_path, tiny, {"keys": LR}, methods), tmp_path / "out", progress=False)
    several = study_of(tmp_path, tiny, {"keys": LR}, training={"devices": 2})
    with pytest.raises(ConfigError, match=r"training\.devices: expected 1 in a study, got 2"):
        run_study(several, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_extra_is_named(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sparsemtl\[search\]'"):
        run_study(study_of(tmp_path, tiny, {"keys": LR}), tmp_path / "out", progress=False)


# Figures


def test_a_score_is_the_mean_change_or_the_figure() -> None:
    values = {"a": {"accuracy": 0.6, "loss": 2.0}, "b": {"rmse": 3.0}, "c": {"x": 1.0}}
    assert Score({"a": "loss"}, {"a": 1.0}).of(values) == 2.0
    change = Score({"a": "accuracy", "b": "rmse"}, {"a": 1.0, "b": -1.0}, {"a": 0.5, "b": 4.0})
    assert change.of(values) == pytest.approx((20 + 25) / 2)
    assert math.isnan(Score({"a": "accuracy"}, {"a": 1.0}, {"a": 0.0}).of(values))
    table = [
        MetricRow(1, 1, "train", "a", "loss", 9.0),
        MetricRow(1, 1, "validation", "a", "loss", 2.0),
        MetricRow(2, 2, "validation", "a", "loss", math.nan),
    ]
    assert list(epoch_scores(table, Score({"a": "loss"}, {"a": 1.0}))) == [(1, 2.0)]


def searched(points: dict[str, tuple[float, float]], baseline: str | None) -> StudyResults:
    """Results of settings with an accuracy and multiply-adds each."""
    table = []
    for name, (accuracy, macs) in points.items():
        method, _, value = name.partition(" ")
        head = (f"{name}-0", method, 0, value or None)
        table += [(*head, split, "t", "accuracy", True, accuracy) for split in ("validation", "test")]
        table += [(*head, "cost", "", "macs", False, macs)]
    columns = ["run", "method", "seed", "key", "split", "task", "metric", "higher_is_better", "value"]
    results = StudyResults.of(pd.DataFrame(table, columns=columns), baseline=baseline)
    object.__setattr__(results, "objectives", ("delta_m", "macs"))
    return results


def test_the_front_holds_what_no_setting_beats() -> None:
    points = {"stl": (0.5, 100.0), "a 1": (0.6, 80.0), "a 2": (0.55, 90.0), "a 3": (0.4, 20.0), "a 4": (0.4, 30.0)}
    results = searched(points, "stl")
    front = pareto_front(results)
    assert list(front.index) == ["a, key 3", "a, key 1"]
    assert list(objective_figures(results)["delta_m"].round(6)) == [0.0, 20.0, 10.0, -20.0, -20.0]
    table = pareto_table(results)
    assert table is not None
    assert table.head == ["setting", "delta_m ↑", "macs ↓"]
    assert "2 of 5 settings" in table.notes[0]
    # without a baseline changes are against the first setting
    alone = searched({key: value for key, value in points.items() if key != "stl"}, None)
    assert list(objective_figures(alone)["delta_m"].round(4)) == [0.0, -8.3333, -33.3333, -33.3333]
    object.__setattr__(alone, "objectives", ("delta_m",))
    assert pareto_table(alone) is None
