"""Every file of a run folder is read; a damaged one is named with what to do; nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import sparsemtl as sm
from sparsemtl.errors import CheckpointError
from sparsemtl.report import write_report
from sparsemtl.runs.check_run import check_run
from sparsemtl.runs.run import run
from sparsemtl.storage.files import read_tensors, read_tree, write_tensors, write_tree
from sparsemtl.storage.findings import Finding

CONFIG = {
    "data": "two-regressions",
    "encoder": {"name": "mlp", "hidden": [8]},
    "sharing": {"name": "random", "keep": 0.5},
    "training": {"epochs": 2, "batch_size": 512, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(CONFIG, folder, progress=False, finished=write_report)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def findings(folder: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_run(folder).findings}


def test_a_whole_run_is_ok_and_nothing_is_written(folder: Path) -> None:
    before, state = contents(folder), torch.get_rng_state()
    found = check_run(folder)
    assert found.ok, str(found)
    assert torch.equal(torch.get_rng_state(), state)
    assert contents(folder) == before
    named = {finding.what for finding in found.findings}
    assert named == {path for path in before if not path.startswith(".")}
    by_name = findings(folder)
    assert by_name["inputs.json"].found.endswith("the model is built from it, and takes its weights and networks")
    assert "keeps 50" in by_name["networks.safetensors"].found
    assert by_name["checkpoints/last.safetensors"].found.startswith("epoch 2, step")
    assert "summary.json" in found._repr_html_()
    assert json.loads(json.dumps(found.record()))["ok"]


FILES = (
    "config.yaml",
    "environment.json",
    "metrics.csv",
    "summary.json",
    "model.safetensors",
    "networks.safetensors",
    "inputs.json",
    "samples.safetensors",
    "report.html",
    "checkpoints/last.safetensors",
    "checkpoints/best.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_in_half_is_named_with_what_to_do(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2].rstrip(b"\n"))
    found = check_run(folder)
    assert not found.ok
    by_name = {finding.what: finding for finding in found.findings}
    assert by_name[name].state == "broken", str(found)
    assert by_name[name].remedy


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_broken_only_if_the_run_needs_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    if name == "config.yaml":
        with pytest.raises(CheckpointError, match="expected the folder of a run or a study"):
            check_run(folder)
        return
    needed = name in ("metrics.csv", "model.safetensors", "networks.safetensors", "samples.safetensors")
    found = findings(folder)
    if name == "checkpoints/best.safetensors":
        assert name not in found
    else:
        assert found[name].state == ("broken" if needed else "missing")
    assert check_run(folder).ok == (not needed)


def test_the_remedy_mends(folder: Path, whole: Path) -> None:
    from sparsemtl.runs.run import resume

    (folder / "model.safetensors").write_bytes(b"")
    remedy = findings(folder)["model.safetensors"].remedy
    assert "delete summary.json" in remedy
    assert f"sparsemtl resume {folder}" in remedy
    (folder / "summary.json").unlink()
    resume(folder, progress=False)
    assert check_run(folder).ok
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_that_stopped_is_ok_and_says_how_to_go_on(folder: Path) -> None:
    for name in ("summary.json", "model.safetensors", "networks.safetensors", "samples.safetensors", "report.html"):
        (folder / name).unlink()
    found = findings(folder)
    assert found["summary.json"] == Finding(
        "summary.json", "the run has not ended", "missing", f"`sparsemtl resume {folder}`"
    )
    assert check_run(folder).ok
    (folder / "checkpoints" / "best.safetensors").unlink()
    assert findings(folder)["checkpoints/best.safetensors"].state == "broken"
    (folder / "checkpoints" / "last.safetensors").unlink()
    lost = findings(folder)["checkpoints/last.safetensors"]
    assert (lost.state, lost.remedy) == ("broken", "the run cannot be resumed: start it anew in another folder")


def test_files_that_disagree_are_named(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    task = next(iter(summary["tasks"]))
    kept = summary["parameters"]["kept"]
    changed = {**summary, "parameters": {**summary["parameters"], "kept": {**kept, task: 1}}}
    (folder / "summary.json").write_text(json.dumps(changed))
    assert "in summary.json 1" in findings(folder)["networks.safetensors"].found
    summary["tasks"][task]["test"]["loss"] += 1
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "'loss' of task" in findings(folder)["metrics.csv"].found
    (folder / "summary.json").write_text(json.dumps({**summary, "epochs": 3}))
    found = findings(folder)
    assert "has no figures of epoch 3" in found["metrics.csv"].found
    assert "is of epoch 2, the summary of epoch 3" in found["checkpoints/last.safetensors"].found


def test_weights_that_are_nan_and_networks_of_another_model_are_named(folder: Path) -> None:
    tensors, header = read_tensors(folder / "model.safetensors")
    name = next(iter(tensors))
    write_tensors(folder / "model.safetensors", {**tensors, name: tensors[name] * float("nan")}, header)
    assert f"{name!r} holds NaN" in findings(folder)["model.safetensors"].found
    write_tensors(folder / "model.safetensors", {n.replace("encoder", "body"): t for n, t in tensors.items()}, header)
    found = findings(folder)
    assert "which the model does not have" in found["networks.safetensors"].found
    write_tensors(folder / "model.safetensors", {n: t for n, t in tensors.items() if "heads" not in n}, header)
    assert "does not fit SharedBottom" in findings(folder)["inputs.json"].found


def test_crafted_content_never_raises(folder: Path) -> None:
    last = folder / "checkpoints" / "last.safetensors"
    state = read_tree(last)
    for changed in ({**state, "fingerprint": {"w": 5}}, {**state, "progress": {}}, [1], {**state, "parts": 7}):
        write_tree(last, changed)
        assert findings(folder)["checkpoints/last.safetensors"].state == "broken"
    for name in ("summary.json", "environment.json", "inputs.json"):
        for text in ("[]", "{}", "5", '{"tasks": 3}', '{"tasks": {"x": 1}}'):
            (folder / name).write_text(text)
            assert findings(folder)[name].state == "broken", (name, text)


def test_other_files_are_named_and_left_alone(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / ".model.safetensors.1a.part").write_text("")
    found = findings(folder)
    assert found["notes.txt"].found.startswith("not a file of the run")
    assert "was killed" in found[".model.safetensors.1a.part"].found
    assert check_run(folder).ok


def test_a_run_made_in_python_is_checked(tmp_path: Path) -> None:
    model = sm.SharedBottom(torch.nn.Linear(4, 6), [sm.Classification("a", 2)])
    x = torch.randn(12, 4)
    data = [(x, {"a": (x[:, 0] > 0).long()})]
    sm.Trainer(model, epochs=1, folder=tmp_path, progress=False, accelerator="cpu").fit(data, list(data))
    found = findings(tmp_path)
    assert check_run(tmp_path).ok
    assert found["config.yaml"].found == "description of a run that was made in Python"
    assert "load_run(folder, model=model)" in found["inputs.json"].found


def test_a_study_is_checked_run_by_run(folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(folder, study / "runs" / "one")
    (study / "study.json").write_text('{"name": "demo"}')
    found = findings(study)
    assert found["study.json"].found == "study 'demo'"
    assert found["runs/one/summary.json"].state == "ok"
    (study / "runs" / "one" / "summary.json").write_text("{")
    assert not check_run(study).ok
