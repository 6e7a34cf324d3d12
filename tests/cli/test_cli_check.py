"""`sparsemtl check` tells a configuration from a folder, prints tables or JSON, and fails only on faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sparsemtl.cli.main import app
from sparsemtl.errors import CheckpointError, ConfigError, ParameterError
from sparsemtl.runs.run import run
from sparsemtl.storage.yaml_text import dump_yaml

CONFIG = {
    "data": "two-regressions",
    "encoder": {"name": "mlp", "hidden": [8]},
    "sharing": {"name": "random", "keep": 0.5},
    "training": {"epochs": 3, "batch_size": 512, "accelerator": "cpu"},
}


def check(*words: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(CONFIG))
    return path


def test_a_configuration_is_checked_on_one_batch(file: Path) -> None:
    result = check(file, "sharing.keep=0.25")
    assert result.exit_code == 0, result.output
    for words in ("gradient norm", "activations", "all epochs", "keeps 25.0%", "float32 (512, 100)"):
        assert words in " ".join(result.output.split()), words
    assert "kept in memory" not in result.output  # a run of the command line writes its best model to its folder
    assert [path.name for path in file.parent.iterdir()] == ["run.yaml"]


def test_json_holds_the_pretraining_run_as_well(file: Path) -> None:
    file.write_text(dump_yaml({**CONFIG, "tasks": ["first"], "pretraining": {"tasks": ["second"]}}))
    record = json.loads(check(file, "--json").stdout)
    assert list(record) == ["pretraining", "run"]
    assert [probe["task"] for probe in record["pretraining"]["probes"]] == ["second"]
    assert record["run"]["coverage"]["density"] == {"first": 0.5}


def test_a_study_is_checked_by_the_first_run_of_each_method(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    base = {key: value for key, value in CONFIG.items() if key != "sharing"}
    methods = {"dense": {}, "random": {"sharing": "random"}}
    path.write_text(dump_yaml({"base": base, "methods": methods, "seeds": [0, 1]}))
    record = json.loads(check(path, "--json").stdout)
    assert list(record) == ["dense", "random"]
    assert not record["dense"]["run"]["coverage"]["masked"]


def test_a_folder_is_read_and_a_fault_fails(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run({**CONFIG, "training": {**CONFIG["training"], "epochs": 1}}, folder, progress=False)  # type: ignore[dict-item]
    assert check(folder).exit_code == 0
    assert json.loads(check(folder, "--json").stdout)["ok"]
    (folder / "model.safetensors").write_bytes(b"")
    result = check(folder)
    assert result.exit_code == 1
    assert "model.safetensors" in result.output
    assert "broken: delete summary.json" in " ".join(result.output.split())
    assert isinstance(check(folder, "training.epochs=3").exception, ConfigError)


def test_what_is_neither_is_named(tmp_path: Path, file: Path) -> None:
    assert isinstance(check(tmp_path).exception, CheckpointError)
    assert isinstance(check(tmp_path / "absent.yaml").exception, ConfigError)
    assert "trainingg" in str(check(file, "trainingg.epochs=3").exception)


def test_networks_for_other_libraries_are_named_with_what_runs_them(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"network")
    error = check(tmp_path / "net.onnx").exception
    assert isinstance(error, ParameterError)
    assert "sparsemtl bench" in str(error)
