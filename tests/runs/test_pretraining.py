"""A run may start from the encoder of a run before it, which is made first, once, and as exactly as any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from loops import each
from test_run import Killed, rows_without_times
from torch import Tensor

import sparsemtl as sm
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.architectures.auxiliary import Auxiliary
from sparsemtl.backbones import ENCODERS
from sparsemtl.cli.training import stopping
from sparsemtl.data import Split
from sparsemtl.errors import CheckpointError, ConfigError, NonFiniteLossError, ParameterError, SparseMTLError
from sparsemtl.networks.frozen import Frozen
from sparsemtl.report import write_report
from sparsemtl.runs import models
from sparsemtl.runs import run as runs
from sparsemtl.runs.build import make_trainer
from sparsemtl.runs.changes import merge
from sparsemtl.runs.config import check
from sparsemtl.runs.pretraining import PretrainedNetwork, pretrain, pretraining_config
from sparsemtl.runs.run import resume, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.files import read_tensors, read_tree, write_tensors
from sparsemtl.storage.locks import locked
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.text_files import read_json
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.tasks import Classification
from sparsemtl.training import Trainer

SUBSETS = {
    "name": "label-subsets",
    "source": {"name": "digits", "task": "digit"},
    "classes": 4,
    "overlap": 2,
    "samples_per_class": 6,
    "validation_per_class": 8,
    "test_per_class": 8,
}
BASE: dict[str, Any] = {
    "data": SUBSETS,
    "encoder": {"name": "mlp", "hidden": [8, 6]},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "training": {"epochs": 2, "batch_size": 16, "accelerator": "cpu", "measure_cost": False},
    "pretraining": {"training": {"batch_size": 64}, "optimizer": {"lr": 0.5}},
}
"""Pretraining at a rate so large that its last epoch is not its best."""
VGG = {"name": "vgg5", "width": 2, "fc": [6, 6], "norm": False}
NORMED = {**VGG, "norm": True}


def based(**changes: Any) -> dict[str, Any]:
    return check(merge(BASE, changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `BASE`, whose reports are not drawn."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    run(BASE, folder, progress=False)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy in which the run before is finished and the run itself not begun."""
    shutil.copytree(whole / "pretraining", tmp_path / "run" / "pretraining")
    return tmp_path / "run"


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Folder and number, from 0, of the epochs that are trained, as they come."""
    trained: list[tuple[str, int]] = []
    train_epoch = Trainer._train_epoch

    def counted(self: Trainer, *given: Any) -> None:
        assert self.folder is not None
        trained.append((self.folder.path.name, self.position.epoch))
        train_epoch(self, *given)

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    return trained


def encoder_in(file: Path) -> dict[str, Tensor]:
    return part(read_tensors(file)[0], "encoder.")


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def started(config: Mapping[str, Any], folder: Path) -> sm.MultiTaskModel:
    """The model of a run as training would begin with it, after its pretraining."""
    spec = RunSpec(config)
    return make_trainer(config, spec.data, None, pretrained=pretrained(spec, folder), progress=False).model


def pretrained(spec: RunSpec, folder: Path) -> PretrainedNetwork | None:
    """The network of a run's pretraining, made in its folder if it is not there."""
    train = partial(runs._run, resume=True, progress=False, finished=None)
    return pretrain(spec, RunFolder(folder), train=train, dry_run=runs.dry_run)


@pytest.mark.parametrize(
    ("architecture", "prefixes"),
    [
        ("shared-bottom", ["encoder."]),
        ("single-task", ["encoders.task1.", "encoders.task2."]),
        ("cross-stitch", ["encoders.task1.", "encoders.task2."]),
        ("auxiliary", ["encoders.task1.", "encoders.task2."]),
    ],
)
def test_every_encoder_starts_exactly_from_the_best_weights_of_the_run_before(
    copied: Path, architecture: str, prefixes: list[str]
) -> None:
    earlier = RunFolder(copied / "pretraining")
    assert read_json(earlier.summary)["tasks"]["auxiliary"]["best_epoch"] == 1  # of two
    best, last = (part(read_tree(file)["model"], "encoder.") for file in (earlier.best("all"), earlier.last))
    assert not equal(best, last)
    model = started(based(architecture=architecture), copied)
    for prefix in prefixes:
        assert equal(part(model.state_dict(), prefix), best)


def test_only_the_encoder_is_taken_over(copied: Path) -> None:
    everything = based(tasks=["auxiliary"], architecture="shared-bottom")
    fresh = make_trainer(check({**everything, "pretraining": None}), RunSpec(everything).data, None, progress=False)
    assert equal(part(started(everything, copied).state_dict(), "heads."), part(fresh.model.state_dict(), "heads."))


@pytest.mark.parametrize("name", ENCODERS)
def test_all_weights_and_statistics_of_any_encoder_are_taken_over(name: str, tmp_path: Path) -> None:
    shape = {"mlp": (3,), "transformers": (4,)}.get(name, (3, 32, 32))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    narrow: dict[str, dict[str, Any]] = {"mlp": {}, "cnn": {}, "transformers": {"config": sizes}}
    earlier, encoder = (ENCODERS.build(name, shape, **narrow.get(name, {"width": 2})) for _ in range(2))
    for tensor in earlier.state_dict().values():
        tensor.copy_(torch.rand_like(tensor, dtype=torch.float32) * 9)
    write_tensors(tmp_path / "model.safetensors", {f"encoder.{n}": t for n, t in earlier.state_dict().items()}, {})
    PretrainedNetwork(RunSpec(check({})), tmp_path / "model.safetensors").load_encoder(encoder)
    assert equal(encoder.state_dict(), earlier.state_dict())


def test_the_run_before_is_the_run_of_its_own_configuration(whole: Path, tmp_path: Path) -> None:
    before = pretraining_config(check(BASE))
    assert before is not None
    run(before, tmp_path / "alone", progress=False)
    assert (tmp_path / "alone" / "config.yaml").read_bytes() == (whole / "pretraining" / "config.yaml").read_bytes()
    assert_same_end(tmp_path / "alone", whole / "pretraining")


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, figures and results are equal bit for bit; neither has masks."""
    for name in ("model.safetensors", "samples.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert rows_without_times(one) == rows_without_times(other)
    assert read_json(one / "summary.json")["tasks"] == read_json(other / "summary.json")["tasks"]


def test_a_run_goes_the_same_way_whenever_its_pretraining_was_done(
    whole: Path, copied: Path, epochs: list[tuple[str, int]]
) -> None:
    kept = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    run(BASE, copied, progress=False)
    assert epochs == [("run", 0), ("run", 1)]
    assert_same_end(whole, copied)
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("again", [run, resume], ids=["run again", "resumed"])
@pytest.mark.parametrize("trained", [0, 1])
def test_a_run_killed_in_its_pretraining_ends_like_the_uninterrupted_one(
    whole: Path, tmp_path: Path, trained: int, again: Callable[..., Any]
) -> None:
    killed_after(trained, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    again(*([BASE] if again is run else []), tmp_path / "run", progress=False)
    assert_same_ends(whole, tmp_path / "run")


@pytest.mark.parametrize("trained", [2, 3])
def test_a_run_killed_after_its_pretraining_ends_like_the_uninterrupted_one(
    whole: Path, tmp_path: Path, trained: int, epochs: list[tuple[str, int]]
) -> None:
    killed_after(trained, tmp_path / "run")
    resume(tmp_path / "run", progress=False)
    assert epochs == [("pretraining", 0), ("pretraining", 1), ("run", 0), ("run", 1)]
    assert_same_ends(whole, tmp_path / "run")


def test_a_run_killed_between_its_pretraining_and_its_training_ends_like_the_uninterrupted_one(
    whole: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainedNetwork, "load_encoder", die_if_trained)
        with pytest.raises(Killed):
            run(BASE, tmp_path / "run", progress=False)
    resume(tmp_path / "run", progress=False)
    assert_same_ends(whole, tmp_path / "run")


def killed_after(trained: int, folder: Path) -> None:
    """A run of `BASE` that dies when so many epochs are trained, those of its pretraining counted."""
    train_epoch, left = Trainer._train_epoch, iter(range(trained))

    def train_or_die(self: Trainer, *given: Any) -> None:
        if next(left, None) is None:
            raise Killed
        train_epoch(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train_or_die)
        with pytest.raises(Killed):
            run(BASE, folder, progress=False)


def die(*_: Any) -> None:
    raise Killed


def die_if_trained(network: PretrainedNetwork, encoder: Any) -> None:
    if network.untrained is None:
        raise Killed


def assert_same_ends(one: Path, other: Path) -> None:
    for inner in (".", "pretraining"):
        assert_same_end(one / inner, other / inner)
        assert read_yaml(one / inner / "config.yaml") == read_yaml(other / inner / "config.yaml")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"pretraining": {"training": {"epochs": 3}}}, "training.epochs is 2 there and 3 here"),
        ({"pretraining": {"tasks": ["task1"]}}, r'tasks is \["auxiliary"\] there and \["task1"\] here'),
        ({"encoder": {"hidden": [8, 7]}}, r"encoder.hidden is \[8, 6\] there and \[8, 7\] here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
    ],
)
def test_a_pretraining_of_another_configuration_is_refused_and_left_alone(
    copied: Path, changes: dict[str, Any], difference: str
) -> None:
    kept = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=rf"run/pretraining holds a run of another configuration: {difference}\."):
        run(based(**changes), copied, progress=False)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == kept


def test_a_pretraining_that_lacks_keys_of_today_is_taken_as_it_is(copied: Path, epochs: list[tuple[str, int]]) -> None:
    earlier = RunFolder(copied / "pretraining")
    stored = {key: value for key, value in earlier.read_config().items() if key not in ("freeze", "pretraining")}
    earlier.write_config(stored)
    run(BASE, copied, progress=False)
    assert {folder for folder, _ in epochs} == {"run"}
    assert earlier.read_config() == stored


def test_what_does_not_concern_the_run_before_may_change_after_it(copied: Path, epochs: list[tuple[str, int]]) -> None:
    mmoe = {"name": "mmoe", "fresh": False}
    changes = {"architecture": mmoe, "sharing": "random", "balancing": "pcgrad", "freeze": True, "name": "mine"}
    run(based(**changes), copied, progress=False)
    assert {folder for folder, _ in epochs} == {"run"}


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"pretraining": None}, ["task1", "task2", "auxiliary"]),
        ({}, ["task1", "task2"]),
        ({"pretraining": {"tasks": ["task1", "auxiliary"]}}, ["task2"]),
        ({"tasks": ["task1", "auxiliary"]}, ["task1", "auxiliary"]),
        ({"pretraining": {"tasks": None}}, ["task1", "task2", "auxiliary"]),
        ({"pretraining": {"tasks": ["task1", "task2", "auxiliary"]}}, ["task1", "task2", "auxiliary"]),
    ],
)
def test_tasks_of_the_pretraining_are_left_out_unless_named_or_all(changes: dict[str, Any], tasks: list[str]) -> None:
    assert [task.name for task in RunSpec(based(**changes)).data.tasks] == tasks


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tasks": ["task3"]}, ConfigError, "^pretraining: tasks: unknown task 'task3'. Did you mean 'task2'?"),
        ({"weights": {"x": 1}}, ConfigError, "^pretraining: weights: unknown task 'x'"),
        ({"data": "digits"}, ConfigError, "^pretraining: tasks: unknown task 'auxiliary'. Known: digit, parity"),
        ({"tasks": []}, ParameterError, "^pretraining: label-subsets: at least one task"),
        ({"optimizer": {"lr": 1e30}}, NonFiniteLossError, "^pretraining: the loss of task 'auxiliary' is nan"),
        ({"encoder": {"hidden": [8, 5]}}, CheckpointError, r"pretraining/model\.\w+: the encoder does not fit .*MLP"),
        ({"encoder": {"hidden": [8]}}, CheckpointError, r"does not fit this run's: [^\0]*Missing.*layers\.3\.weight"),
        ({"architecture": "single-task"}, CheckpointError, r"no weights encoder\.\*, .* such as shared-bottom"),
    ],
)
def test_an_error_in_the_run_before_says_where_it_was_made(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(based(pretraining=changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "sharing": ({"sharing": {"name": "fisher", "warmup": 2}}, "^sharing 'fisher' would still be warming up after 2 ep"),
    "tasks": ({"tasks": ["task3"]}, "^tasks: unknown task 'task3'"),
    "class map": (
        {"architecture": {"name": "auxiliary", "class_map": {"task1": {"x": 1}}}},
        "^class_map: task 'task1': unknown class 'x'",
    ),
    "samples": (
        {"architecture": {"name": "auxiliary", "align": "classic"}, "heads": {"task1": "linear"}},
        "^task 'task1': its classes are not known",
    ),
    "architecture": ({"architecture": {"name": "cross-stitch", "after": ["x"]}}, "^MLP: unknown part 'x'"),
    "a start that is lost": ({"architecture": "mmoe"}, "^architecture.fresh: expected false beside `pretraining`"),
    "heads": ({"heads": {"task1": "none"}}, "unknown head 'none'"),
    "heads that do not fit": ({"heads": {"task1": "fcn"}}, "^FCNHead reads a feature map, but the encoder has no "),
    "optimizer": (
        {"optimizer": {"momentum": 0.0, "nesterov": True}, "pretraining": {"optimizer": {"momentum": 0.9}}},
        "^optimizer 'sgd': Nesterov momentum requires a momentum",
    ),
    "device": (
        {"training": {"accelerator": "gpux"}, "pretraining": {"training": {"accelerator": "cpu"}}},
        "^accelerator='gpux'",
    ),
    "another encoder before": ({"pretraining": {"encoder": {"hidden": [8, 5]}}}, "the encoder does not fit this run's"),
    "other inputs before": ({"pretraining": {"data": "two-regressions", "tasks": None}}, "does not fit this run's"),
    "encoders of tasks before": ({"pretraining": {"architecture": "single-task"}}, r"has no weights encoder\.\*"),
    "optimizer before": (
        {"pretraining": {"optimizer": {"momentum": 0.0, "nesterov": True}}},
        "^pretraining: optimizer 'sgd': Nesterov momentum requires a momentum",
    ),
    "two before": (
        {"pretraining": {"pretraining": {"tasks": ["task3"]}}},
        "^pretraining: pretraining: tasks: unknown task 'task3'",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_run_comes_up_before_its_pretraining_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str, epochs: list[Any]
) -> None:
    with pytest.raises(SparseMTLError, match=message):
        run(based(**changes), tmp_path / "run", progress=False)
    assert epochs == []
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_changes_nothing_that_is_drawn_later(whole: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "dry_run", lambda plan, place: None)
        run(BASE, tmp_path / "run", progress=False)
    assert_same_ends(whole, tmp_path / "run")


@pytest.mark.parametrize("architecture", ["shared-bottom", "auxiliary", {"name": "auxiliary", "align": "classic"}])
def test_what_is_rehearsed_is_the_run_but_for_what_is_trained_before(copied: Path, architecture: Any) -> None:
    config = based(architecture=architecture)
    rehearsed = runs.dry_run(RunSpec(config), RunFolder(copied)).model.state_dict()
    shapes = {name: tensor.shape for name, tensor in started(config, copied).state_dict().items()}
    assert {name: tensor.shape for name, tensor in rehearsed.items() if ".reference_features." not in name} == {
        name: shape for name, shape in shapes.items() if ".reference_features." not in name
    }


@pytest.mark.parametrize("go_on", [run, resume])
def test_nothing_is_rehearsed_once_pretraining_is_done(
    copied: Path, go_on: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "dry_run", die)
    with locked(copied):
        RunFolder(copied).write_config(check(BASE))
    go_on(*([BASE] if go_on is run else []), copied, progress=False)
    assert RunFolder(copied).finished


def test_the_stand_in_looks_at_samples_until_one_has_a_class(tmp_path: Path) -> None:
    plan = RunSpec(check({"tasks": ["digit"], "training": {"batch_size": 1}}))
    (task,) = plan.data.tasks
    assert isinstance(plan.data.train, Split)
    assert isinstance(task, Classification)
    plan.data.train.targets["digit"][:5] = task.ignore_index
    stand_in = PretrainedNetwork(plan, tmp_path / "model.safetensors", torch.nn.Linear(1, 1))
    ((x, targets),) = stand_in.samples(task)
    assert torch.equal(x, plan.data.train.x[4:6])
    assert torch.equal(targets["digit"], plan.data.train.targets["digit"][4:6])


def test_a_run_that_diverged_in_its_pretraining_is_no_finished_one(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(NonFiniteLossError):
            run(based(pretraining={"optimizer": {"lr": 1e30}}), tmp_path / "run", progress=False)
    assert not RunFolder(tmp_path / "run" / "pretraining").finished


def test_there_may_be_a_run_before_the_run_before(tmp_path: Path, epochs: list[Any]) -> None:
    nested = based(
        training={"epochs": 1},
        pretraining={"tasks": ["task1"], "pretraining": {"training": {"epochs": 1}, "optimizer": {"lr": 0.1}}},
    )
    run(nested, tmp_path / "run", progress=False)
    assert epochs == [("pretraining", 0)] * 2 + [("run", 0)]
    first, second = (tmp_path / "run" / inner / "config.yaml" for inner in ("pretraining/pretraining", "pretraining"))
    assert [read_yaml(file)["tasks"] for file in (first, second)] == [["auxiliary"], ["task1"]]


def source_of(config: Mapping[str, Any], folder: Path) -> Any:
    spec = RunSpec(config)
    network = pretrained(spec, folder)
    assert network is not None
    return network.source(models._encoder(config, spec.data, network), models._heads)


def test_the_source_is_the_task_with_its_trained_head_and_the_samples_that_trained_it(copied: Path) -> None:
    source = source_of(check(BASE), copied)
    assert (source.task.name, source.task.classes) == ("auxiliary", 10)
    trained = part(read_tensors(copied / "pretraining" / "model.safetensors")[0], "heads.auxiliary.")
    assert equal(source.last.state_dict(), trained)
    train = RunSpec(check({**BASE, "pretraining": None})).data.train["auxiliary"]  # type: ignore[index]
    assert torch.equal(torch.cat([x for x, _ in source.samples]), train.x)  # type: ignore[union-attr]


@pytest.mark.parametrize("tasks", [["auxiliary", "task1"], None])
def test_an_encoder_that_was_trained_for_several_tasks_has_no_source(tmp_path: Path, tasks: list[str] | None) -> None:
    config = based(pretraining={"tasks": tasks, "training": {"epochs": 1}, "optimizer": {"lr": 0.1}})
    assert source_of(config, tmp_path) is None


def test_an_encoder_that_was_trained_for_no_classes_has_no_source(tmp_path: Path) -> None:
    changes = {"tasks": ["slant"], "training": {"epochs": 1}, "optimizer": {"lr": 0.1}}
    assert source_of(based(data="digits", pretraining=changes), tmp_path) is None


def test_an_auxiliary_network_whose_head_is_no_linear_layer_gives_no_rows(tmp_path: Path) -> None:
    config = based(
        architecture="auxiliary",
        heads={"auxiliary": {"name": "mlp", "widths": [5]}},
        pretraining={"optimizer": {"lr": 0.1}},
    )
    source = source_of(config, tmp_path / "run")
    trained = part(read_tensors(tmp_path / "run" / "pretraining" / "model.safetensors")[0], "heads.auxiliary.")
    assert source.last is None
    assert equal(source.head.state_dict(), trained)
    results = run(config, tmp_path / "run", progress=False)
    assert set(results) == {"task1", "task2"}
    model = started(config, tmp_path / "run")
    assert isinstance(model, Auxiliary)
    assert len(model.class_mappings) == 0


def test_last_layers_are_the_rows_of_the_classes_of_the_same_name(copied: Path) -> None:
    model = started(based(architecture="auxiliary"), copied)
    rows = part(read_tensors(copied / "pretraining" / "model.safetensors")[0], "heads.auxiliary.")
    for name, task in model.tasks.items():
        classes = [int(called) for called in task.class_names]  # type: ignore[attr-defined]
        assert equal(model.heads[name].state_dict(), {key: value[classes] for key, value in rows.items()})


@pytest.mark.parametrize("sharing", ["dense", {"name": "soft-masks", "init": "uniform"}])
@pytest.mark.parametrize("weights", ["own", "shared", "frozen"])
def test_auxiliary_networks_run_from_a_configuration(tmp_path: Path, weights: str, sharing: Any) -> None:
    config = based(
        encoder=VGG,
        architecture={"name": "auxiliary", "weights": weights},
        sharing=sharing,
        training={"epochs": 1},
        pretraining={"optimizer": {"lr": 0.1}},
    )
    start = started(config, tmp_path / "run").state_dict()
    results = run(config, tmp_path / "run", progress=False)
    end = read_tensors(tmp_path / "run" / "model.safetensors")[0]
    assert set(results) == {"task1", "task2"}
    assert (equal(part(start, "trunk."), part(end, "trunk."))) == (weights != "shared")
    for task in results:
        assert not equal(part(start, f"heads.{task}."), part(end, f"heads.{task}."))
    rows = rows_without_times(tmp_path / "run")
    assert {row["task"] for row in rows if row["metric"] == "discrepancy"} == {"task1", "task2"}


def test_a_run_and_the_run_before_it_leave_a_whole_folder_each(tmp_path: Path) -> None:
    config = based(architecture="auxiliary", encoder=VGG, sharing="soft-masks", pretraining={"optimizer": {"lr": 0.1}})
    run(config, tmp_path / "run", progress=False, finished=write_report)
    for folder, tasks in ((tmp_path / "run", ["task1", "task2"]), (tmp_path / "run" / "pretraining", ["auxiliary"])):
        place = RunFolder(folder)
        assert place.finished
        assert list(read_json(place.summary)["tasks"]) == tasks
        for file in (place.config, place.environment, place.metrics, place.model, place.samples, place.last):
            assert file.exists()
        page = place.report.read_text(encoding="utf-8")
        assert all(task in page for task in tasks)
    assert read_yaml(tmp_path / "run" / "pretraining" / "config.yaml") == pretraining_config(config)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_reading_classic_compares_with_the_samples_of_the_auxiliary_task(copied: Path, kernel: str) -> None:
    config = based(architecture={"name": "auxiliary", "align": "classic", "kernel": kernel, "bank": 1000})
    run(config, copied, progress=False)
    model: Any = started(config, copied)
    train = RunSpec(check({**BASE, "pretraining": None})).data.train["auxiliary"]  # type: ignore[index]
    features, labels = model.alignment_loss.reference_features()
    expected = train.targets["auxiliary"]  # type: ignore[union-attr]
    assert torch.equal(labels, expected if kernel == "rbf" else expected.unique())
    assert all(len(of_layer) == len(labels) for of_layer in features.values())


def test_without_pretraining_the_fully_connected_layers_alone_are_aligned(tmp_path: Path) -> None:
    config = based(architecture="auxiliary", pretraining=None, tasks=["task1", "task2"])
    model: Any = started(config, tmp_path / "run")
    assert len(model.class_mappings) == 0
    assert list(model.connected) == ["layers.1", "layers.3"]
    run(config, tmp_path / "run", progress=False)
    assert any(row["metric"] == "discrepancy" for row in rows_without_times(tmp_path / "run"))
    assert not (tmp_path / "run" / "pretraining").exists()


def test_a_class_map_without_pretraining_is_refused(tmp_path: Path) -> None:
    config = based(architecture={"name": "auxiliary", "class_map": {"task1": {}}}, pretraining=None)
    with pytest.raises(ParameterError, match=r"class_map: .*there are no classes to map to.* by `pretraining`"):
        run(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("architecture", "prefixes"),
    [("shared-bottom", ["encoder.network."]), ("single-task", [f"encoders.task{i}.network." for i in (1, 2)])],
)
@pytest.mark.parametrize("pretraining", [None, {"optimizer": {"lr": 0.1}, "training": {"epochs": 1}}])
def test_a_frozen_encoder_is_bit_for_bit_what_it_started_as(
    tmp_path: Path, architecture: str, prefixes: list[str], pretraining: Any
) -> None:
    config = based(
        architecture=architecture,
        encoder=NORMED,
        freeze=True,
        pretraining=pretraining,
        tasks=["task1", "task2"],
        optimizer={"weight_decay": 0.1, "momentum": 0.9},
    )
    start = started(config, tmp_path / "run").state_dict()
    run(config, tmp_path / "run", progress=False)
    end = read_tensors(tmp_path / "run" / "model.safetensors")[0]
    for prefix in prefixes:
        frozen = part(end, prefix)
        assert any(name.endswith("running_var") for name in frozen)
        assert equal(frozen, part(start, prefix))
        if pretraining is not None:
            assert equal(frozen, encoder_in(tmp_path / "run" / "pretraining" / "model.safetensors"))
    assert not any(torch.equal(end[name], tensor) for name, tensor in start.items() if name.startswith("heads."))


@each(
    "architecture",
    [
        *(name for name in ARCHITECTURES if name != "auxiliary"),
        *({"name": "auxiliary", "weights": weights} for weights in ("own", "shared")),
    ],
)
def test_every_architecture_leaves_a_frozen_encoder_as_it_is(architecture: Any) -> None:
    optimizer = {"name": "sgd", "lr": 0.1, "weight_decay": 0.1}
    changes = {"architecture": architecture, "encoder": NORMED, "tasks": ["digit", "parity"], "optimizer": optimizer}
    config = check({**changes, "freeze": True, "training": {"epochs": 2, "accelerator": "cpu"}})
    data = RunSpec(config).data
    trainer = make_trainer(config, data, None, progress=False)
    train, validation, _ = data.loaders(500)
    trainer.set_up(train)
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    end = trainer.fit(train, validation).model.state_dict()
    frozen = {name for name in start if ".network." in name}
    assert {name.rpartition(".")[2] for name in frozen} >= {"weight", "bias", "running_mean"}
    assert all(torch.equal(end[name], start[name]) for name in frozen)
    assert not torch.equal(end["heads.digit.weight"], start["heads.digit.weight"])
    others = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert not any(other.startswith(("encoder", "trunk")) for other in others)


def test_an_encoder_that_is_not_frozen_moves(whole: Path) -> None:
    assert not equal(encoder_in(whole / "model.safetensors"), encoder_in(whole / "pretraining" / "model.safetensors"))


def test_freezing_freezes_the_whole_encoder_and_its_stem_and_nothing_else() -> None:
    model = make_trainer(based(freeze=True), RunSpec(check(BASE)).data, None, progress=False).model
    assert isinstance(model.encoder, Frozen)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("heads.")}


def test_a_run_may_start_from_the_encoder_of_a_run_that_froze_it(whole: Path, copied: Path, tmp_path: Path) -> None:
    run(based(freeze=True), copied, progress=False)
    config = based(pretraining=None, pretrained=str(copied / "model.safetensors"))
    model = started(config, tmp_path / "next")
    assert equal(part(model.state_dict(), "encoder."), encoder_in(whole / "pretraining" / "model.safetensors"))


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_a_run_may_start_from_an_earlier_encoder_with_its_stem(tmp_path: Path, freeze: bool) -> None:
    pytest.importorskip("pandas")
    rows = [f"{i % 7},{'abc'[i % 3]},{i % 5}" for i in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["size,kind,price", *rows]))
    table = {"name": "table", "path": str(tmp_path / "table.csv"), "targets": {"price": "regression"}}
    config = check({"data": {**table, "encoding": "embedding"}, "encoder": "mlp", "freeze": freeze})
    earlier = started(config, tmp_path).state_dict()
    write_tensors(tmp_path / "model.safetensors", earlier, {})
    later = started({**config, "seed": 1, "pretrained": str(tmp_path / "model.safetensors")}, tmp_path).state_dict()
    assert any("stem" in name for name in later)
    assert equal(part(later, "encoder."), part(earlier, "encoder."))


def test_a_run_that_is_interrupted_in_pretraining_says_how_to_go_on(
    tmp_path: Path, epochs: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    with pytest.raises(typer.Exit), stopping(tmp_path / "run"):
        run(BASE, tmp_path / "run", progress=False)
    assert capsys.readouterr().err == f"Stopped. Resume with `sparsemtl resume {tmp_path / 'run'}`.\n"


def test_the_run_before_keeps_the_run_s_draws_whatever_its_own_seed() -> None:
    before = pretraining_config(based(data={"seed": None}, seed=3, pretraining={"seed": 7}))
    assert before is not None
    assert (before["seed"], before["data"]["seed"]) == (7, 3)


def test_the_run_before_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match=r"`pretraining` in .*: freeze: expected false"):
        based(pretraining={"freeze": True})


@pytest.mark.parametrize("start", ["pretraining", "pretrained"])
def test_copies_that_would_lose_the_weights_are_refused_before_anything_is_trained(start: str, tmp_path: Path) -> None:
    config = merge(BASE, {"architecture": "mmoe"})
    if start == "pretrained":
        config |= {"pretraining": None, "pretrained": "weights.safetensors"}
    with pytest.raises(ConfigError, match=f"architecture.fresh: expected false beside `{start}`"):
        run(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
