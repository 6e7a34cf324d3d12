"""A run folder alone gives the model, the tasks and their networks back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsemtl as sm
from sparsemtl.data import DATASETS
from sparsemtl.errors import CheckpointError
from sparsemtl.runs.run import run
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks import TASKS

TRAINING = {"epochs": 2, "batch_size": 256, "accelerator": "cpu", "measure_cost": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "fisher": {"sharing": {"name": "fisher", "keep": 0.5}},
    "soft masks": {"sharing": {"name": "soft-masks", "linear": True}},
    "pbfs, selected per task": {"sharing": {"name": "pbfs", "warmup": 0, "reach_at": 1, "target_sparsity": 0.5}},
    "dense": {},
    "single tasks": {"architecture": "single-task"},
    "excitations": {"architecture": "squeeze-excitation", "sharing": {"name": "random", "keep": 0.5}},
    "experts": {"architecture": "mmoe"},
    "options of tasks": {"task_options": {"digit": {"label_smoothing": 0.1}}, "weights": {"digit": 2.0}},
}


def made(folder: Path, **changes: Any) -> sm.LoadedRun:
    config = {"data": "digits", "encoder": {"name": "mlp", "hidden": [8]}, "training": TRAINING, **changes}
    run(config, folder, progress=False)
    return sm.load_run(folder)


@pytest.mark.filterwarnings("ignore:.*a Gaussian has no slope:sparsemtl.errors.LikelihoodWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loaded_run_predicts_what_the_trained_one_did(name: str, tmp_path: Path) -> None:
    loaded = made(tmp_path / "run", **CONFIGS[name])
    samples = RunFolder(tmp_path / "run").read_samples()["all"]
    assert list(loaded.tasks) == list(samples["tasks"])
    outputs = loaded.predict(samples["x"])
    for task, own in loaded.tasks.items():
        # batches of other sizes, and one task without the others, may be added up in another order
        torch.testing.assert_close(own.predict(outputs[task]), samples["tasks"][task]["prediction"])
        torch.testing.assert_close(loaded.network(task)(samples["x"], tasks=[task])[task], outputs[task])
        small = loaded.compact(task, example_inputs=(samples["x"],))
        torch.testing.assert_close(small(samples["x"]), outputs[task], rtol=1e-4, atol=1e-5)
    if name == "options of tasks":
        assert loaded.tasks["digit"].weight == 2.0
        assert loaded.tasks["digit"].label_smoothing == 0.1  # type: ignore[attr-defined]


def test_masks_of_a_loaded_run_know_why_they_leave_out_the_rest(tmp_path: Path) -> None:
    sharing = {"name": "random", "keep": 0.5, "exclude": ["encoder.layers.1"]}
    encoder = {"name": "mlp", "hidden": [8, 8]}
    for name, changes in {"masks": {"sharing": sharing}, "soft": CONFIGS["soft masks"]}.items():
        masks = made(tmp_path / name, encoder=encoder, **changes).masks
        assert masks is not None
        described = masks.describe()
        assert "not known" not in str(described)
        assert described.left_out is not None
        assert described.left_out["heads.digit.bias"].reason == "of task 'digit' alone, like its head"
        excluded = described.left_out.get("encoder.layers.1.weight")
        assert (excluded is not None and "exclude" in excluded.reason) == (name == "masks")


def test_a_loaded_run_has_its_history_and_evaluates_other_data(tmp_path: Path) -> None:
    loaded = made(tmp_path / "run", sharing={"name": "random", "keep": 0.5})
    assert list(loaded.history.columns) == ["epoch", "step", "split", "task", "metric", "value"]
    curve = loaded.history.query("split == 'validation' and task == 'digit' and metric == 'accuracy'")
    assert curve["epoch"].tolist() == [1, 2]
    *_, test = DATASETS.build("digits").loaders(batch_size=256)
    assert loaded.evaluate(test) == loaded.metrics
    assert set(loaded.metrics) == set(loaded.tasks)


def test_another_process_without_the_data_loads_the_same(tmp_path: Path) -> None:
    loaded = made(tmp_path / "run", sharing={"name": "random", "keep": 0.5})
    x = torch.rand(3, 1, 8, 8)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch\n"
        "import sparsemtl as sm\n"
        "import sparsemtl.data\n"
        "sparsemtl.data.DATASETS.build = None  # nothing reads the data\n"
        f"run = sm.load_run({str(tmp_path / 'run')!r})\n"
        f"print(run.predict(torch.load({str(tmp_path / 'x.pt')!r}))['digit'].double().sum().item())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(found) == loaded.predict(x)["digit"].double().sum().item()


def test_a_run_made_in_python_is_loaded_into_a_model_of_the_same_form(tmp_path: Path) -> None:
    def model() -> sm.SharedBottom:
        return sm.SharedBottom(torch.nn.Linear(4, 6), [sm.Classification("a", 2), sm.Regression("b")])

    x = torch.randn(12, 4)
    data = [(x, {"a": (x[:, 0] > 0).long(), "b": x[:, 1]})]
    trainer = sm.Trainer(
        model(), sharing=sm.RandomSharing(keep=0.5), epochs=1, folder=tmp_path, progress=False, accelerator="cpu"
    ).fit(data, list(data))
    with pytest.raises(
        CheckpointError, match=r"does not describe how its model is built .* load_run\(folder, model=model\)"
    ):
        sm.load_run(tmp_path)
    fresh = model()
    fresh(x)  # heads learn their widths
    loaded = sm.load_run(tmp_path, model=fresh)
    assert loaded.masks == trainer.masks
    for task, output in trainer.predict(x).items():
        assert torch.equal(loaded.predict(x)[task], output)


def test_a_folder_without_a_trained_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no run .*; expected the folder of a run"):
        sm.load_run(tmp_path)


def test_every_kind_of_task_is_recorded_and_built_again() -> None:
    from sparsemtl.runs.model_inputs import _record, _task

    kinds: dict[str, sm.Task] = {
        "classification": sm.Classification("t", ["no", "yes"], class_weights=[1.0, 2.0]),
        "multi-label": sm.MultiLabel("t", 3),
        "regression": sm.Regression("t"),
        "segmentation": sm.Segmentation("t", 4),
        "depth": sm.Depth("t"),
        "normals": sm.Normals("t"),
        "token-classification": sm.TokenClassification("t", ["O", "B-X"]),
    }
    assert set(kinds) == set(TASKS)
    for kind, task in kinds.items():
        record = _record(task, {})
        assert record is not None, kind
        again = _task(record)
        assert (type(again), again.outputs, again._arguments) == (type(task), task.outputs, task._arguments), kind
