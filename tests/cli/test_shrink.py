"""A trained run becomes one small network of all its tasks, by one command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sparsemtl as sm
from sparsemtl.cli.main import app
from sparsemtl.cli.shrinking import shrunk_config
from sparsemtl.errors import CheckpointError, ConfigError, ParameterError
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run as run_config
from sparsemtl.storage.files import read_tree
from sparsemtl.storage.text_files import read_json
from sparsemtl.training.shrinking import shrink as shrinking

CONFIG = {
    "data": "digits",
    "encoder": {"name": "mlp", "hidden": [16, 12]},
    "optimizer": {"name": "adam", "lr": 0.01},
    "training": {"epochs": 4, "batch_size": 256},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shrink") / "dense"
    run_config(check(CONFIG, where="test"), folder, progress=False)
    return folder


def test_a_run_becomes_one_small_network_of_all_tasks(dense: Path) -> None:
    words = ["shrink", str(dense), "--macs", "0.4", "--quiet"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    folder = dense.with_name("dense-macs-0.4")
    assert "multiply-adds" in result.output
    small, run = sm.load_network(folder / "small.safetensors"), sm.load_run(folder)
    assert (run.config["teacher"], shrinking.TEACHER_WEIGHT) == (None, 0)
    x = read_tree(folder / "samples.safetensors")["all"]["x"]
    assert sm.macs(small, x[:1]) <= 0.4 * sm.macs(sm.load_run(dense).model, x[:1])
    for task, expected in run.predict(x).items():
        torch.testing.assert_close(small(x)[task], expected, atol=1e-5, rtol=1e-4)
    assert read_json(folder / "summary.json")["sharing"]["macs"] <= 0.4


def test_several_budgets_are_runs_of_their_own_with_one_table_and_one_picture(dense: Path) -> None:
    folder = dense.with_name("front")
    words = ["shrink", str(dense), "--macs", "0.6", "0.3", "--epochs", "2", "--out", str(folder), "--quiet"]
    words += ["--teacher-weight", "1"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    record = read_json(folder / "shrink.json")
    names = [network["name"] for network in record["networks"]]
    assert names == ["dense", "macs 0.6", "macs 0.3"]
    whole, *left = (network["macs"] for network in record["networks"])
    assert all(0.5 * share < macs / whole <= share for macs, share in zip(left, (0.6, 0.3), strict=True))
    first, second = (sm.load_run(folder / name).config for name in ("macs-0.6", "macs-0.3"))
    assert (first["start_from"], second["start_from"]) == (str(dense), str(folder / "macs-0.6"))
    assert first["teacher"]["run"] == second["teacher"]["run"] == str(dense)
    assert (first["sharing"]["per_reader"], first["sharing"]["lambda"]) == (shrinking.PER_READER, shrinking.STRENGTH)
    page = (folder / "shrink.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)
    assert "<svg" in page
    before = (folder / "macs-0.3" / "summary.json").stat().st_mtime_ns
    again = CliRunner().invoke(app, words, catch_exceptions=False)  # goes on where it stopped
    assert again.exit_code == 0
    assert (folder / "macs-0.3" / "summary.json").stat().st_mtime_ns == before
    assert all(name in again.output for name in names)


def test_budgets_that_do_not_go_together_are_refused(dense: Path) -> None:
    for words, match in {
        ("--macs", "0.3", "--weights", "0.3"): "give one kind of budget, got --macs and --weights",
        ("--max-drop", "0.1", "0.2"): "--max-drop: expected one number",
        ("--macs", "1.5"): r"expected numbers in \(0, 1\) for `macs`",
    }.items():
        with pytest.raises((ConfigError, ParameterError), match=match):
            CliRunner().invoke(app, ["shrink", str(dense), *words], catch_exceptions=False)


def test_it_trains_on_from_the_weights_of_the_run(dense: Path, tmp_path: Path) -> None:
    config = check({**CONFIG, "start_from": str(dense), "optimizer": {"name": "sgd", "lr": 1e-12}}, where="test")
    run_config(config, tmp_path / "same", progress=False)
    before, after = (sm.load_run(folder).metrics for folder in (dense, tmp_path / "same"))
    assert {task: own["loss"] for task, own in after.items()} == pytest.approx(
        {task: own["loss"] for task, own in before.items()}, rel=1e-6
    )


def test_weights_that_are_not_there_or_do_not_fit_are_refused_before_training(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start_from: expected the folder of a finished run, .*nowhere"):
        run_config(check({**CONFIG, "start_from": "nowhere"}, where="test"), tmp_path / "a", progress=False)
    other = {**CONFIG, "start_from": str(dense), "encoder": {"name": "mlp", "hidden": [8]}}
    with pytest.raises(CheckpointError, match=r"start_from: .* `encoder`, `heads`, `architecture` and `tasks` must"):
        run_config(check(other, where="test"), tmp_path / "b", progress=False)


def test_a_run_of_several_processes_is_shrunk_by_one_with_as_large_a_step(dense: Path) -> None:
    run = sm.load_run(dense)
    training = {**run.config["training"], "devices": 2, "batch_size": 24}
    config = shrunk_config(replace(run, config={**run.config, "training": training}), dense, {"macs": 0.5}, 2)
    assert {key: config["training"][key] for key in ("devices", "batch_size")} == {"devices": 1, "batch_size": 48}


def test_networks_of_their_own_are_not_made_one(tmp_path: Path) -> None:
    run_config(check({**CONFIG, "sharing": "random"}, where="test"), tmp_path / "masked", progress=False)
    with pytest.raises(ConfigError, match="its tasks have networks of their own"):
        CliRunner().invoke(app, ["shrink", str(tmp_path / "masked")], catch_exceptions=False)
