"""A run does what its configuration says, leaves everything behind, and repeats bit for bit."""

from __future__ import annotations

import csv
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each

from sparsemtl.architectures import build_pools, label_correlations
from sparsemtl.backbones import MLP
from sparsemtl.data import TaskData
from sparsemtl.errors import CheckpointError, ConfigError, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim import Schedule
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import merge
from sparsemtl.runs.config import check
from sparsemtl.runs.run import resume, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.training import Trainer

SPLITS = ("train", "validation", "test")


class Killed(Exception):
    pass


def rows_without_times(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["metric"] != "seconds"]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("config.yaml", "model.safetensors", "networks.safetensors", "samples.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert rows_without_times(one) == rows_without_times(other)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert summaries[0]["tasks"] == summaries[1]["tasks"]


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that are trained, counted from 0, as they come."""
    trained: list[int] = []
    train_epoch = Trainer._train_epoch

    def counted(self: Trainer, *given: Any) -> None:
        trained.append(self.position.epoch)
        train_epoch(self, *given)

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    return trained


def killed_in_its_second_epoch(config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_epoch = Trainer._train_epoch

    def train_or_die(self: Trainer, *given: Any) -> None:
        if self.position.epoch == 1:
            raise Killed
        train_epoch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train_or_die)
        with pytest.raises(Killed):
            run(config, folder, progress=False)


def test_a_run_leaves_its_configuration_versions_metrics_checkpoints_masks_and_report(
    finished_run: Path, measured: dict[str, Any]
) -> None:
    assert read_yaml(finished_run / "config.yaml") == check(measured)
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["versions"]["torch"] == version("torch")
    assert {row["split"] for row in rows_without_times(finished_run)} >= set(SPLITS)
    for name in ("best", "last"):
        read_tree(finished_run / "checkpoints" / f"{name}.safetensors")
    masks = TaskNetworks.load(finished_run / "networks.safetensors").masks
    assert all(masks.density(task) == pytest.approx(0.5, abs=0.01) for task in masks)
    assert "<html" in (finished_run / "report.html").read_text(encoding="utf-8")


def test_the_summary_has_every_tasks_validation_and_test_metrics(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert list(summary["tasks"]) == ["digit", "parity", "shape", "slant"]
    for entry in summary["tasks"].values():
        assert set(entry["validation"]) == set(entry["test"]) == set(entry["directions"])
        assert entry["primary"] in entry["test"]


def test_the_results_of_a_run_are_those_of_its_summary(tiny: dict[str, Any], tmp_path: Path) -> None:
    results = run(tiny, tmp_path / "run", progress=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {task: entry["test"] for task, entry in summary["tasks"].items()} == results


def test_a_run_of_the_recorded_configuration_is_the_same_run(finished_run: Path, tmp_path: Path) -> None:
    run(read_yaml(finished_run / "config.yaml"), tmp_path / "again", progress=False)
    assert_same_run(finished_run, tmp_path / "again")


def test_another_seed_is_another_run(finished_run: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    run({**tiny, "seed": 1}, tmp_path / "other", progress=False)
    for name in ("model.safetensors", "networks.safetensors"):
        assert (finished_run / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_a_run_that_was_killed_and_resumed_is_the_same_run(
    finished_run: Path,
    measured: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: list[int],
) -> None:
    killed_in_its_second_epoch(measured, tmp_path / "cut", monkeypatch)
    with pytest.raises(CheckpointError, match=r"holds a run that stopped\. Resume it with `sparsemtl resume .*cut`"):
        run(measured, tmp_path / "cut", progress=False)
    resume(tmp_path / "cut", progress=False)
    assert epochs == [0, 1]
    assert_same_run(finished_run, tmp_path / "cut")


def test_a_finished_run_is_neither_resumed_nor_overwritten(finished_run: Path, tiny: dict[str, Any]) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="is finished; there is nothing to resume"):
        resume(finished_run)
    with pytest.raises(CheckpointError, match=r"holds a finished run\. Use another --out, or delete it"):
        run(tiny, finished_run)
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no run \(config.yaml is missing\)"),
        ({"study.json": "{}", "config.yaml": "{}"}, "is a study. Resume it with the same `sparsemtl study` command"),
        (
            {"config.yaml": "data: digits"},
            "has no checkpoint to resume from. Start the run anew: `sparsemtl run .*config.yaml",
        ),
    ],
)
def test_a_folder_that_holds_no_stopped_run_cannot_be_resumed(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_a_missing_folder_is_not_made_by_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none does not exist; expected the folder of a run"):
        resume(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("[1", "not valid YAML"), ("", "is empty"), ("dta: digits", r"config\.yaml is not valid:\n")]
)
def test_a_damaged_configuration_is_said_when_resuming(
    finished_run: Path, tmp_path: Path, text: str, message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(finished_run, folder)
    (folder / "summary.json").unlink()
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        resume(folder)


def test_a_file_is_no_place_for_a_run(tmp_path: Path, tiny: dict[str, Any]) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; a run needs a folder of its own"):
        run(tiny, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["digit", "partiy"]}, "tasks: unknown task 'partiy'. Did you mean 'parity'?"),
        ({"weights": {"digitt": 1}}, "weights: unknown task 'digitt'. Did you mean 'digit'?"),
        ({"heads": {"partiy": "linear"}}, "heads: unknown task 'partiy'. Did you mean 'parity'?"),
        ({"optimizer": {"name": "sgd", "nesterov": True, "momentum": 0}}, "optimizer 'sgd': Nesterov momentum"),
    ],
)
def test_what_only_the_data_or_the_constructor_can_refuse_is_said_by_its_name(
    tiny: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(merge(tiny, changes), tmp_path / "run", progress=False)


def test_a_run_needs_a_task(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="at least one task"):
        run({**tiny, "tasks": []}, tmp_path / "run")


def test_tasks_are_chosen_and_weighted() -> None:
    data = RunSpec(check({"tasks": ["slant", "digit"], "weights": {"slant": 2}})).data
    assert {task.name: task.weight for task in data.tasks} == {"digit": 1.0, "slant": 2.0}


def test_heads_and_weights_of_tasks_that_are_not_trained_are_left_alone() -> None:
    trainer = made(tasks=["digit"], weights={"slant": 2, "digit": 3}, heads={"slant": "linear"})
    assert {name: task.weight for name, task in trainer.model.tasks.items()} == {"digit": 3.0}


@pytest.mark.parametrize("architecture", ["shared-bottom", "single-task", "mmoe", "pbfs"])
def test_an_embedded_table_trains_behind_its_stem(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    rows = [f"{i % 7},{'abc'[i % 3]},{i % 5},{'yes' if i % 4 else 'no'}" for i in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["size,kind,price,bought", *rows]))
    config = {
        "data": {
            "name": "table",
            "path": str(tmp_path / "table.csv"),
            "targets": {"price": "regression", "bought": "classification"},
            "encoding": "embedding",
        },
        "architecture": architecture,
        "encoder": {"name": "mlp", "hidden": [6]},
        "training": {"epochs": 2},
    }
    found = run(config, tmp_path / "run", progress=False)
    assert set(found) == {"price", "bought"}
    weights, _ = read_tensors(tmp_path / "run" / "model.safetensors")
    assert any("stem" in name for name in weights)


def test_an_architecture_that_asks_for_labels_gets_those_of_the_training_data() -> None:
    trainer = made(architecture={"name": "pbfs", "alpha": 0.01})
    data = RunSpec(check({})).data
    assert data.labels() is not None
    expected = build_pools(label_correlations(data.tasks, data.labels()), 0.01, [task.name for task in data.tasks])  # type: ignore[arg-type]
    assert list(trainer.model.pools) == list(expected)  # type: ignore[union-attr,arg-type]


def test_a_task_may_be_judged_by_another_metric() -> None:
    trainer = made(primary={"digit": "f1_macro"})
    assert [next(iter(task.metrics())) for task in trainer.model.tasks.values()] == [
        "f1_macro",
        "accuracy",
        "accuracy",
        "r2",
    ]
    with pytest.raises(ParameterError, match="task 'digit': unknown metric 'f2'"):
        made(primary={"digit": "f2"})


def made(**changes: Any) -> Trainer:
    config = check({"encoder": {"name": "mlp", "hidden": [8]}, **changes})
    return make_trainer(config, RunSpec(config).data, None, progress=False)


@each(
    ("key", "value"),
    [
        ("epochs", 3),
        ("accumulate", 4),
        ("clip_norm", 0.5),
        ("mix", "shortest"),
        ("patience", 2),
        ("restart_every", 3),
        ("accelerator", "cpu"),
        ("precision", "64-true"),
        ("checkpoint_every", 7),
        ("tensorboard", True),
    ],
)
def test_training_settings_reach_the_trainer(key: str, value: Any) -> None:
    assert made(training={key: value}).options[key] == value  # type: ignore[literal-required]
    assert made().options[key] != value  # type: ignore[literal-required]


def test_every_section_reaches_its_part() -> None:
    trainer = made(
        data={"missing": 0.25},
        sharing={"name": "random", "keep": 0.7},
        architecture="single-task",
        balancing={"name": "constant", "weights": [1, 2, 3, 4]},
        training={"monitor": "loss", "epochs": 4},
        optimizer={"name": "sgd", "lr": 0.25, "momentum": 0.5},
        scheduler={"name": "cosine", "floor": 0.1},
        name="mine",
        seed=5,
    )
    assert any("0.25 of the training labels" in note for note in trainer.options["notes"])
    assert trainer.sharing.keep == 0.7  # type: ignore[attr-defined]
    assert trainer.model.independent
    trainer.balancer.attach(4, torch.device("cpu"))
    assert trainer.balancer.weights(torch.ones(4)).tolist() == [1, 2, 3, 4]
    assert (trainer.selection.monitor, trainer.name, trainer.options["seed"]) == ("loss", "mine", 5)
    optimizer = trainer._parts.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.25, 0.5)
    assert isinstance(trainer._parts.scheduler, Schedule)
    scheduler = trainer._parts.scheduler(optimizer, 4)
    for _ in range(4):
        optimizer.step()
        scheduler.step()  # type: ignore[call-arg]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_schedule_over_steps_can_be_configured() -> None:
    trainer = made(scheduler={"name": "linear", "warmup": 2, "per_step": True})
    assert isinstance(trainer._parts.scheduler, Schedule)
    assert trainer._parts.scheduler.described() == {"name": "linear", "per_step": True, "warmup": 2, "floor": 0.0}
    assert trainer._parts.scheduler_every == "step"


def test_the_encoder_is_made_for_the_data_by_the_seed() -> None:
    encoders = [made(seed=seed).model.encoder for seed in (1, 1, 2)]  # type: ignore[union-attr]
    assert all(isinstance(encoder, MLP) for encoder in encoders)
    first, again, other = (torch.cat([p.flatten() for p in encoder.parameters()]) for encoder in encoders)  # type: ignore[union-attr]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_encoder_may_start_from_that_of_an_earlier_run(finished_run: Path) -> None:
    earlier = finished_run / "model.safetensors"
    config = check({**read_yaml(finished_run / "config.yaml"), "pretrained": str(earlier)})
    model = make_trainer(config, RunSpec(config).data, None, progress=False).model
    weights, _ = read_tensors(earlier)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    assert own.keys() == {name for name in weights if name.startswith("encoder.")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())


def test_pretrained_weights_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        made(pretrained=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_last_batch_that_is_not_full_may_be_left_out(tiny: dict[str, Any], drop_last: bool, tmp_path: Path) -> None:
    sizes: list[int] = []
    loaders = TaskData.loaders

    def seen(self: TaskData, *given: Any, **options: Any) -> Any:
        train, *rest = loaders(self, *given, **options)
        sizes.extend(len(x) for x, _ in train)
        return train, *rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskData, "loaders", seen)
        run(merge(tiny, {"training": {"batch_size": 100, "drop_last": drop_last}}), tmp_path / "run", progress=False)
    assert (sizes[-1] == 100) is drop_last
