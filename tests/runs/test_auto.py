"""`sharing: auto` in a configuration: a run like any other, with a run folder per candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sparsemtl as sm
from sparsemtl.cli.main import app
from sparsemtl.errors import CheckpointError, ConfigError, SparseMTLError
from sparsemtl.runs.auto_options import adds_groups, default_candidates
from sparsemtl.runs.build import make_sharing
from sparsemtl.runs.changes import override
from sparsemtl.runs.check_config import check_config
from sparsemtl.runs.config import candidate_configs, check
from sparsemtl.runs.run import resume, run
from sparsemtl.runs.schema import json_schema
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.training.choosing.affinity import TaskAffinity
from sparsemtl.training.choosing.halving import SURVIVORS, largest_cost

CANDIDATES: dict[str, Any] = {
    "dense": {},
    "random": {"sharing": {"name": "random", "keep": 0.5}},
    "apart": {"architecture": "single-task"},
}
CONFIG: dict[str, Any] = {
    "data": {"name": "clustered-regressions", "tasks": 2, "train_size": 40, "validation_size": 40, "test_size": 60},
    "encoder": {"name": "mlp", "hidden": [8, 6]},
    "sharing": {"name": "auto", "candidates": CANDIDATES, "rungs": [0.5]},
    "training": {"epochs": 2, "batch_size": 16, "measure_cost": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("auto") / "run"
    run(CONFIG, path, progress=False)
    return path


def test_a_run_is_loaded_evaluated_and_compacted_like_any_other(folder: Path) -> None:
    loaded = sm.load_run(folder)
    summary = RunFolder(folder).read_summary()
    assert summary["status"] == "finished"
    assert summary["axes"]["sharing"] == "auto"
    choice = json.loads((folder / "choice.json").read_text())
    assert {task: about["candidate"] for task, about in summary["sharing"]["tasks"].items()} == choice
    x = torch.randn(20, 20)
    for task, name in choice.items():
        alone = sm.load_run(folder / "candidates" / name)
        expected = alone.predict(x, tasks=[task])[task]
        assert torch.equal(loaded.predict(x, tasks=[task])[task], expected)
        torch.testing.assert_close(loaded.compact(task, x)(x), expected)
    assert loaded.metrics == {task: entry["test"] for task, entry in summary["tasks"].items()}
    assert sm.check_run(folder).ok


def test_the_promise_and_the_cost_are_in_its_record(folder: Path) -> None:
    about = RunFolder(folder).read_summary()["sharing"]
    for found in about["tasks"].values():
        assert found["baseline"] in ("dense", "apart")
        assert found["gain"]["validation"] >= 0
        assert found["gain"]["low"] <= found["gain"]["test"] <= found["gain"]["high"]
    assert about["trainings"] == sum(about["epochs"].values()) / 2
    tables = RunFolder(folder).read_summary()["declarations"]["sharing"]["tables"]
    assert [table["title"] for table in tables] == ["Network of each task", "Who shares with whom", "Candidates"]


def test_a_run_that_stopped_ends_like_one_that_did_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = 0
    fit = sm.Trainer.fit

    def stopping(self: sm.Trainer, *args: Any, **options: Any) -> sm.Trainer:
        nonlocal fitted
        fitted += 1
        if fitted == 3:
            raise KeyboardInterrupt
        return fit(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sm.Trainer, "fit", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(CONFIG, tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match="holds a run that stopped"):
        run(CONFIG, tmp_path / "run", progress=False)
    resume(tmp_path / "run", progress=False)
    for name in ("model.safetensors", "networks.safetensors", "choice.json", "metrics.csv"):
        left, right = ((path / name).read_text("latin-1") for path in (folder, tmp_path / "run"))
        if name == "metrics.csv":  # without times
            left, right = ([line for line in text.split() if "seconds" not in line] for text in (left, right))
        assert left == right, name
    with pytest.raises(CheckpointError, match="is finished"):
        resume(tmp_path / "run", progress=False)


def test_a_report_shows_the_choice(folder: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    page = (folder / "report.html").read_text()
    assert "Network of each task" in page
    assert "Who shares with whom" in page


def test_a_pretraining_run_has_one_network() -> None:
    with pytest.raises(ConfigError, match="sharing: expected one method, got 'auto'"):
        check({"pretraining": {"tasks": ["parity"], "sharing": "auto"}})


def test_its_spellings_mean_the_same() -> None:
    one = check({"sharing": "auto"})
    assert one["sharing"]["name"] == "dense"
    assert one == check({"sharing": {"name": "auto"}}) == check(one) == check({"auto": {}})
    assert check(override({"sharing": "fisher"}, ["sharing=auto", "sharing.survivors=0.3"]))["auto"]["survivors"] == 0.3
    assert check({})["auto"] is None
    assert {"const": "auto"} in json_schema()["properties"]["sharing"]["anyOf"]


def test_rows_choose_and_stop_or_do_one_of_both(tmp_path: Path) -> None:
    """By default all validation rows do both, so that a candidate's figures are those of its own run."""
    for choose in (None, 0.25):
        path = tmp_path / f"{choose}"
        run({**CONFIG, "sharing": {**CONFIG["sharing"], "rungs": [], "choose": choose}}, path, progress=False)
        summary = RunFolder(path).read_summary()
        same = []
        for name, _, *values in summary["declarations"]["sharing"]["tables"][2]["rows"]:
            own = RunFolder(path / "candidates" / name).read_summary()["tasks"].values()
            pairs = zip(own, values, strict=True)
            same += [entry["validation"]["r2"] == pytest.approx(value, rel=1e-4) for entry, value in pairs]
        assert all(same) == (choose is None)
        assert ("rows that selected the epochs too" in summary["selection"]["rule"]) == (choose is None)


def test_groups_of_tasks_are_found_and_are_a_candidate(tmp_path: Path) -> None:
    data = {**CONFIG["data"], "tasks": 3, "train_size": 80}
    sharing = {**CONFIG["sharing"], "groups": True}
    config = {**CONFIG, "data": data, "sharing": sharing, "seed": 1}

    def found(self: TaskAffinity, least: float = 0.0) -> list[list[str]]:
        return [["task0", "task2"], ["task1"]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskAffinity, "groups", found)
        run(config, tmp_path / "run", progress=False)
    about = RunFolder(tmp_path / "run").read_summary()
    assert list(about["sharing"]["epochs"]) == ["dense", "random", "groups", "apart"]
    assert about["sharing"]["trainings"] <= largest_cost([1] * 4, [0.5], SURVIVORS, 2)
    assert any("first rung: task0 + task2; task1" in note for note in about["notes"])
    own = read_yaml(tmp_path / "run" / "candidates" / "groups" / "config.yaml")
    assert own["architecture"] == {"name": "task-groups", "groups": [["task0", "task2"], ["task1"]]}
    assert sm.check_run(tmp_path / "run").ok


def test_the_cost_of_the_default_candidates_is_four_trainings_at_most() -> None:
    for epochs in (4, 5, 7, 10, 15, 26, 30, 50, 81, 100, 200):
        complete = check({"sharing": "auto", "training": {"epochs": epochs}})
        configs = list(candidate_configs(complete).values())
        selectable = [make_sharing(own).first_selectable() + 1 for own in configs]
        assert not adds_groups(complete)
        assert largest_cost(selectable, complete["auto"]["rungs"], complete["auto"]["survivors"], epochs) <= 4.0


def test_every_candidate_is_checked_on_a_batch() -> None:
    config = {**CONFIG, "data": {**CONFIG["data"], "tasks": 3}, "sharing": {**CONFIG["sharing"], "groups": True}}
    checks = check_config(config)
    assert list(checks) == [f"candidate {name}" for name in ("dense", "random", "groups", "apart")]
    assert checks["candidate random"].coverage.density == dict.fromkeys(("task0", "task1", "task2"), 0.5)
    config["sharing"] = {
        "name": "auto",
        "groups": True,
        "more": {"mine": {"architecture": {"name": "pbfs", "pools": [["task9"]]}}},
    }
    with pytest.raises(SparseMTLError, match=r"task9.*\(in candidate 'mine'\)"):
        check_config({**config, "training": {**config["training"], "epochs": 9}})


def test_default_candidates_are_valid_for_every_optimizer() -> None:
    for optimizer in ("adam", "adamw", "sgd"):
        complete = check({"sharing": "auto", "optimizer": optimizer})
        configs = candidate_configs(complete)
        assert list(configs) == list(default_candidates(complete))
        assert configs["dense"]["optimizer"] == complete["optimizer"]
        for name, own in list(configs.items())[1:]:
            rate = 0.3 if name == "dense, decay" else 1.0
            assert own["optimizer"]["lr"] == pytest.approx(rate * complete["optimizer"]["lr"])
            assert own["optimizer"]["name"] == ("sgd" if optimizer == "sgd" else "adamw")
            assert own["optimizer"]["weight_decay"] > complete["optimizer"]["weight_decay"]
    for balancing, update in (("mean", "alternate"), ("pcgrad", "average"), ("uncertainty", "average")):
        decayed = candidate_configs(check({"sharing": "auto", "balancing": balancing}))["dense, decay"]
        assert decayed["sharing"]["update"] == update
    more = check({"sharing": {"name": "auto", "more": {"mine": {"sharing": "random"}}}})
    assert list(candidate_configs(more))[-1] == "mine"


def test_decay_falls_with_the_rows() -> None:
    complete = check({"sharing": "auto", "optimizer": {"name": "adamw", "lr": 0.01}})
    decays = {
        rows: [own["optimizer"]["weight_decay"] for own in candidate_configs(complete, rows=rows).values()][1:]
        for rows in (10, 100, 400, 1600)
    }
    assert decays[10] == decays[100] == [1, 1, 0.3, 3]
    for rows in (400, 1600):
        assert decays[rows] == pytest.approx([100 * value / rows for value in decays[100]])


@pytest.mark.filterwarnings("ignore::sparsemtl.errors.SparseMTLWarning")  # of estimators of regressions, of dead units
def test_the_rows_of_the_data_set_the_decay_of_a_run(tmp_path: Path) -> None:
    data = {**CONFIG["data"], "train_size": 200}
    training = {**CONFIG["training"], "epochs": 4, "batch_size": 100}
    run({**CONFIG, "data": data, "sharing": "auto", "training": training}, tmp_path / "run", progress=False)
    about = RunFolder(tmp_path / "run").read_summary()["sharing"]
    assert about["trainings"] == 4.0
    own = read_yaml(tmp_path / "run" / "candidates" / "single-task--decay" / "config.yaml")
    assert own["optimizer"]["weight_decay"] == pytest.approx(300 / 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rung": [0.1]}, r"auto.rung: unknown key 'rung'. Did you mean 'rungs'"),
        ({"rungs": [0.5, 0.1]}, r"`rungs` must rise, got \[0.5, 0.1\]"),
        ({"survivors": 2.0}, r"auto.survivors: expected a float in \(0, 1\], got 2"),
        (
            {"candidates": {"a": {"sharing": "random"}}},
            "expected a candidate with `sharing: dense`.*found none among a",
        ),
        ({"more": {"groups": {}}, "groups": True}, "the candidate 'groups' is added by the option `groups`"),
        ({"more": {"dense": {}}}, "candidate 'dense' is in `more` and among the others"),
        ({"more": {"a": {"seed": 3}}}, "candidate 'a': `seed` cannot be changed"),
        ({"more": {"a": {"sharing": {"name": "fisher", "keeps": 1}}}}, "candidate 'a' is not valid:\n.*'keeps'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check({"sharing": {"name": "auto", **options}})
