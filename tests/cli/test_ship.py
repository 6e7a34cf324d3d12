"""A trained run becomes small networks in files, and their times, by one command each."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sparsemtl as sm
from sparsemtl.cli.bench import _comparison
from sparsemtl.cli.main import app
from sparsemtl.compaction.timing.measure import Speedup, Timing
from sparsemtl.errors import CheckpointError, ParameterError
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run as run_config
from sparsemtl.storage.files import read_tree
from sparsemtl.storage.text_files import read_json

CONFIG = {
    "data": "digits",
    "encoder": {"name": "mlp", "hidden": [12, 10]},
    "sharing": {"name": "random", "keep": 0.5, "granularity": "channel"},
    "training": {"epochs": 1, "batch_size": 512},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ship") / "run"
    run_config(check(CONFIG, where="test"), folder, progress=False)
    return folder


def told(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_each_task_has_a_small_network_in_a_file(run: Path) -> None:
    output = told("compact", run, "--all", "--layers")
    assert "digit  " in output
    assert "why not more" in output
    assert f"{run / 'compact'}/TASK.html" in output.replace("\n", "")
    loaded = sm.load_run(run)
    x = read_tree(run / "samples.safetensors")["all"]["x"]
    for task, expected in loaded.predict(x).items():
        small = sm.load_network(run / "compact" / f"{task}.safetensors")
        torch.testing.assert_close(small(x), expected, atol=1e-5, rtol=1e-4)
        assert sm.parameter_count(small) < sm.parameter_count(loaded.network(task))
        report = read_json(run / "compact" / f"{task}.json")
        assert report["parameters"][1] == sm.parameter_count(small)
        assert list(report["verification"]["outputs"]) == [task]
        assert f"<h1>{task}</h1>" in (run / "compact" / f"{task}.html").read_text(encoding="utf-8")


def test_without_the_packages_of_a_page_there_is_json_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    output = told("compact", run, "--task", "slant", "--out", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slant.json", "slant.safetensors"]
    assert "pip install 'sparsemtl[report]'" in output.replace("\n", " ")
    assert "TASK.html" not in output


def test_a_network_is_exported_on_its_own(run: Path, tmp_path: Path) -> None:
    output = told("export", run, "--format", "pt2", "--task", "slant", "--out", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["slant.pt2"]
    assert f"{tmp_path / 'slant.pt2'}".replace("slant", "TASK") in output.replace("\n", "")


def test_further_axes_reach_every_kind_of_file(run: Path, tmp_path: Path) -> None:
    for form in (("pt2",), ("bundle",), ("pt2", "--all")):
        with pytest.raises(ParameterError, match="no input has an axis 9"):
            told("export", run, "--format", *form, "--task", "slant", "--out", tmp_path, "--axis", "9")
    assert not list(tmp_path.iterdir())


def test_all_tasks_are_exported_in_one_bundle_that_check_reads(run: Path, tmp_path: Path) -> None:
    output = told("export", run, "--format", "bundle")
    assert "digit, parity, low, slant" in output.replace("\n", " ") or "digit, parity" in output
    bundle = run / "export" / "bundle.safetensors"
    loaded = sm.load_run(run)
    x = read_tree(run / "samples.safetensors")["all"]["x"]
    for task in loaded.tasks:
        assert torch.equal(sm.load_network(bundle, task=task)(x), loaded.compact(task)(x))
    assert "bundle of digit, parity" in told("check", bundle)
    assert "export/bundle.safetensors" in told("check", run)
    damaged = tmp_path / "bundle.safetensors"
    damaged.write_bytes(bundle.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        told("check", damaged)


def test_all_tasks_are_exported_as_one_network_with_an_output_each(run: Path, tmp_path: Path) -> None:
    output = told("export", run, "--format", "safetensors", "--all", "--out", tmp_path)
    assert "multiply-adds" in output
    loaded = sm.load_run(run)
    x = read_tree(run / "samples.safetensors")["all"]["x"]
    found = sm.load_network(tmp_path / "all-tasks.safetensors")(x)
    for task, expected in loaded.predict(x).items():
        torch.testing.assert_close(found[task], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ParameterError, match=r"a bundle holds one network per task\. Leave out --all"):
        told("export", run, "--format", "bundle", "--all")


def test_the_ways_to_compute_all_tasks_are_timed_beside_one_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemtl.compaction.timing.measure._DEFAULT", ("eager",))
    pair = ("--task", "digit", "--task", "parity")
    output = told("bench", run, *pair, "--batch-size", "2", "--threads", "1", "--repeats", "1")
    _, together = output.split("All tasks together:")
    assert "separate" in together
    assert "eager" in together


def test_times_stand_beside_the_multiply_adds_that_were_saved(run: Path) -> None:
    threads = torch.get_num_threads()
    output = told("bench", run, "--task", "digit", "--batch-size", "4", "--threads", "1", "--repeats", "2")
    assert "eager" in output
    assert "became time" in output  # whole, though the terminal is narrow
    assert "…" not in output
    assert "1 threads, medians of 2 passes" in output
    assert torch.get_num_threads() == threads


def test_the_share_that_became_time_is_shown_where_it_is_more_than_noise() -> None:
    time = Timing(1.0, 1.0)
    rows = [("a", Speedup("eager", 1, 1, time, time, (100, left))) for left in (99, 50)]
    speedups = [(name, replace(each, difference=0.0)) for name, each in rows]
    assert list(_comparison(speedups).columns[7].cells) == ["", "0%"]


def test_files_of_networks_are_timed(run: Path, tmp_path: Path) -> None:
    for library in ("onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    told("export", run, "--format", "bundle", "--task", "digit", "--task", "parity", "--out", tmp_path)
    told("export", run, "--format", "onnx", "--task", "digit", "--out", tmp_path)
    once = ("--batch-size", "2", "--repeats", "1", "--threads", "1")
    bundle = told("bench", tmp_path / "bundle.safetensors", *once, "--runtime", "eager")
    rows = [line.split()[:3] for line in bundle.splitlines()[1:3]]
    assert rows == [["digit", "eager", "2"], ["parity", "eager", "2"]]
    assert "takes (any, 1, 8, 8) of float32" in bundle.replace("\n", " ")
    assert [line.split()[:3] for line in told("bench", tmp_path / "digit.onnx", *once).splitlines()[1:2]] == [
        ["digit.onnx", "onnxruntime", "2"]
    ]
    with pytest.raises(ParameterError, match="an ONNX file runs in onnxruntime and int8 alone, got eager"):
        told("bench", tmp_path / "digit.onnx", "--runtime", "eager")
    with pytest.raises(ParameterError, match=r"--multiple-of 8: the network in .* is compacted already"):
        told("bench", tmp_path / "digit.onnx", "--multiple-of", "8")


@pytest.mark.parametrize("command", [("compact",), ("export", "--format", "pt2"), ("bench",)])
def test_an_unknown_task_is_refused_with_those_there_are(command: tuple[str, ...], run: Path) -> None:
    with pytest.raises(ParameterError, match=r"unknown task 'digt'. Did you mean 'digit'\? Known: digit, parity"):
        told(*command, run, "--task", "digt")


def test_all_tasks_and_one_of_them_are_not_asked_for_together(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--all names all tasks, --task some"):
        told("compact", tmp_path, "--all", "--task", "digit")


def test_an_unknown_format_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"unknown format 'onyx'. Did you mean 'onnx'\?"):
        told("export", tmp_path, "--format", "onyx")


def test_a_folder_without_a_trained_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no run .*; expected the folder of a run"):
        told("compact", tmp_path)
