"""A study makes the runs before its runs first, and one for all runs that ask for the same."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretraining import BASE, based, die, encoder_in
from test_run import Killed, rows_without_times
from test_runner import study_of

from sparsemtl.errors import ConfigError, SparseMTLError, TrainingError
from sparsemtl.runs.changes import merge
from sparsemtl.runs.pretraining import pretraining_config
from sparsemtl.runs.run import resume, run
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study import runner
from sparsemtl.study.grid import Study
from sparsemtl.study.runner import run_study
from sparsemtl.training import Trainer
from sparsemtl.training.processes.machine import use_threads

SHORT = merge(BASE, {"training": {"epochs": 1}})
NEW = ("freeze", "pretraining")
"""Keys that configurations once lacked."""
METHODS: dict[str, Any] = {
    "plain": {},
    "frozen": {"freeze": True},
    "masked": {"sharing": {"name": "random", "keep": 0.5}},
    "afresh": {"pretraining": None, "tasks": ["task1", "task2"]},
}


@pytest.fixture(scope="module")
def in_order() -> list[str]:
    """Folders, inside the study's, of the runs of `finished`, in the order in which they were trained."""
    return []


@pytest.fixture(scope="module")
def told() -> list[Path]:
    """Folders that `finished` of the study was called with, in order."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, in_order: list[str], told: list[Path]) -> Path:
    """The folder of a finished study of `METHODS`, never to be changed."""
    folder = tmp_path_factory.mktemp("pretrained-study")
    with pytest.MonkeyPatch.context() as patch:
        note_runs(patch, in_order)
        assert run_study(study(folder), folder / "out", progress=False, finished=told.append) == {}
    return folder / "out"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of method `plain` with seed 1, made without a study."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(based(seed=1, label="plain"), folder, progress=False)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders, inside the study's, of the runs that are really trained, in order."""
    folders: list[str] = []
    note_runs(monkeypatch, folders)
    return folders


def note_runs(patch: pytest.MonkeyPatch, folders: list[str]) -> None:
    fit = Trainer.fit

    def counted(self: Trainer, *given: Any, **options: Any) -> Any:
        assert self.folder is not None
        folders.append("/".join(self.folder.path.parts[-2:]))
        return fit(self, *given, **options)

    patch.setattr(Trainer, "fit", counted)


def study(folder: Path, **changes: Any) -> Study:
    return study_of(folder, **{"base": BASE, "methods": METHODS, "seeds": [0, 1], **changes})


def pretrainings(out: Path) -> dict[str, dict[str, Any]]:
    """Name -> configuration."""
    return {folder.name: read_yaml(folder / "config.yaml") for folder in sorted((out / "pretraining").iterdir())}


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_that_ask_for_the_same_share_one_run_before_them_for_every_seed(finished: Path) -> None:
    found = list(pretrainings(finished).values())
    assert found == [pretraining_config(based(seed=seed)) for seed in (0, 1)]
    assert not list((finished / "runs").glob("*/pretraining"))
    for seed, folder in enumerate(sorted((finished / "pretraining").iterdir())):
        start = encoder_in(folder / "model.safetensors")
        frozen = encoder_in(finished / "runs" / f"frozen_seed-{seed}" / "model.safetensors")
        assert all(torch.equal(tensor, frozen[f"network.{name}"]) for name, tensor in start.items())


def test_pretraining_comes_first_and_once(finished: Path, in_order: list[str]) -> None:
    assert [name.rpartition("-")[0] for name in in_order[:2]] == ["pretraining/seed-0", "pretraining/seed-1"]
    of_one_kind = ("plain", "frozen", "masked"), ("afresh",)  # runs with the same data follow one another
    assert in_order[2:] == [f"runs/{name}_seed-{seed}" for names in of_one_kind for seed in (0, 1) for name in names]


def test_every_run_is_told_as_it_finishes_and_the_study_at_last(
    finished: Path, in_order: list[str], told: list[Path]
) -> None:
    assert told == [*(finished / name for name in in_order), finished]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_a_study_is_the_run_that_it_is_alone(
    finished: Path, alone: Path, tmp_path: Path, method: str, ran: list[str]
) -> None:
    inside, outside = finished / "runs" / f"{method}_seed-1", alone
    if method != "plain":
        outside = tmp_path / "alone"
        shutil.copytree(alone / "pretraining", outside / "pretraining")
        run(read_yaml(inside / "config.yaml"), outside, progress=False)
        assert len(ran) == 1
    assert read_yaml(inside / "config.yaml") == read_yaml(outside / "config.yaml")
    assert (inside / "model.safetensors").read_bytes() == (outside / "model.safetensors").read_bytes()
    assert rows_without_times(inside) == rows_without_times(outside)


def test_a_finished_study_runs_nothing_again(copied: Path, tmp_path: Path, ran: list[str]) -> None:
    before = files(copied)
    assert run_study(study(tmp_path), copied, progress=False) == {}
    assert ran == []
    assert files(copied) == before


def test_a_new_method_starts_from_the_run_that_is_there(copied: Path, tmp_path: Path, ran: list[str]) -> None:
    run_study(study(tmp_path, methods={**METHODS, "again": {"architecture": "auxiliary"}}), copied, progress=False)
    assert ran == ["runs/again_seed-0", "runs/again_seed-1"]


def test_runs_that_lack_keys_of_today_are_finished_all_the_same(copied: Path, tmp_path: Path, ran: list[str]) -> None:
    for file in (copied / "runs").glob("*/config.yaml"):
        stored = read_yaml(file)
        file.write_text(dump_yaml({key: stored[key] for key in stored if stored[key] or key not in NEW}))
    assert not any("freeze" in read_yaml(copied / "runs" / f"afresh_seed-{seed}" / "config.yaml") for seed in (0, 1))
    assert run_study(study(tmp_path), copied, progress=False) == {}
    assert ran == []


def test_runs_that_ask_for_something_else_have_a_run_before_of_their_own(tmp_path: Path, ran: list[str]) -> None:
    grid = {"pretraining.training.epochs": [1, 2]}
    methods = {"one": {"grid": grid}, "other": {"pretraining": {"tasks": ["task1"]}}}
    run_study(study(tmp_path, base=SHORT, methods=methods, seeds=[0]), tmp_path / "out", progress=False)
    asked = {(one["training"]["epochs"], one["tasks"][0]) for one in pretrainings(tmp_path / "out").values()}
    assert asked == {(1, "auxiliary"), (2, "auxiliary"), (1, "task1")}
    assert len(ran) == 6


def test_a_pretraining_with_a_seed_of_its_own_serves_all_seeds(tmp_path: Path, ran: list[str]) -> None:
    methods = {"one": {"pretraining": {"seed": 7}, "data": {"seed": 0}}}
    run_study(study(tmp_path, methods=methods), tmp_path / "out", progress=False)
    assert [one["seed"] for one in pretrainings(tmp_path / "out").values()] == [7]
    assert len(ran) == 3


def test_a_pretraining_learns_from_the_split_of_its_run_whatever_its_seed() -> None:
    """Else it would learn from images that test the run."""
    for seed in (0, 1):
        before = pretraining_config(based(seed=seed, pretraining={"seed": 7}))
        assert before is not None
        assert (before["seed"], before["data"]["seed"]) == (7, seed)


def test_tables_and_results_have_the_studys_runs_alone(finished: Path) -> None:
    with (finished / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == set(METHODS)
    assert {row["task"] for row in rows} == {"task1", "task2", ""}
    assert "pretraining" not in (finished / "tables.md").read_text(encoding="utf-8")


def test_a_study_killed_in_a_pretraining_goes_on_to_the_same_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch, left = Trainer._train_epoch, iter(range(3))
    plain = {"plain": METHODS["plain"]}

    def train_or_die(self: Trainer, *given: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        train_epoch(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train_or_die)
        with pytest.raises(KeyboardInterrupt):
            run_study(study(tmp_path, methods=plain), tmp_path / "out", progress=False)
    assert [RunFolder(folder).finished for folder in sorted((tmp_path / "out" / "pretraining").iterdir())] == [
        True,
        False,
    ]
    run_study(study(tmp_path, methods=plain), tmp_path / "out", progress=False)
    assert_same_models(finished, tmp_path / "out", 4)


def assert_same_models(one: Path, other: Path, count: int) -> None:
    """The `count` models of the second study are those of the first."""
    models = [path.relative_to(other) for path in other.rglob("model.safetensors")]
    assert len(models) == count
    for model in models:
        assert (one / model).read_bytes() == (other / model).read_bytes(), model


def test_a_pretraining_that_diverges_ends_the_study_before_its_runs(tmp_path: Path, ran: list[str]) -> None:
    methods = {"good": {}, "bad": {"pretraining": {"optimizer": {"lr": 1e30}}}}
    for _ in range(2):
        with pytest.raises(
            TrainingError,
            match=r"^pretraining/seed-0-\w{10}, from which runs are to start: the loss of task 'auxiliary' is nan",
        ):
            run_study(study(tmp_path, methods=methods, seeds=[0]), tmp_path / "out", progress=False)
    assert [name.partition("/")[0] for name in ran] == ["pretraining"] * 3  # the good one once
    assert not (tmp_path / "out" / "runs").exists()


def test_any_other_error_in_a_pretraining_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ConfigError("not today.")

    monkeypatch.setattr(Trainer, "fit", refused)
    with pytest.raises(ConfigError, match=r"^not today\. \(in run pretraining/seed-0-\w{10} of the study\)$"):
        run_study(study(tmp_path, seeds=[0]), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretraining": {"tasks": ["task3"]}}, r"^pretraining: tasks: unknown task 'task3'"),
        ({"architecture": {"name": "auxiliary", "class_map": {"x": None}}}, "^class_map: unknown task 'x'"),
    ],
)
def test_a_mistake_in_a_method_comes_up_before_all_pretraining_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str, ran: list[str]
) -> None:
    methods = {"good": {}, "bad": {**changes, "grid": {"training.epochs": [1, 2]}}}
    with pytest.raises(SparseMTLError, match=rf"{message}.* \(in run bad_epochs-1_seed-3 of the study\)$"):
        run_study(study(tmp_path, methods=methods, seeds=[3, 4]), tmp_path / "out", progress=False)
    assert ran == []
    assert not (tmp_path / "out").exists()


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that are rehearsed."""
    names: list[str] = []
    monkeypatch.setattr(runner, "dry_run", lambda plan, place: names.append(place.path.name))
    return names


def test_every_method_is_rehearsed_once_if_its_pretraining_is_still_to_be_done(
    copied: Path, tmp_path: Path, rehearsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {**METHODS, "longer": {"pretraining": {"training": {"epochs": 1}}, "grid": {"optimizer.lr": [0.1, 0.2]}}}
    monkeypatch.setattr(runner, "_pretrain", die)  # rehearsals come before
    for out in (copied, tmp_path / "new"):
        with pytest.raises(Killed):
            run_study(study(tmp_path, methods=methods), out, progress=False)
    assert rehearsed == [
        "longer_lr-0.1_seed-0",
        *(f"{m}_seed-0" for m in ("plain", "frozen", "masked")),
        "longer_lr-0.1_seed-0",
    ]


def test_a_rehearsal_changes_no_result(finished: Path, tmp_path: Path, rehearsed: list[str]) -> None:
    methods = {name: METHODS[name] for name in ("plain", "masked")}
    run_study(study(tmp_path, methods=methods, seeds=[0]), tmp_path / "out", progress=False)
    assert rehearsed
    assert_same_models(finished, tmp_path / "out", 3)


NESTED: dict[str, Any] = {
    "direct": {},
    "nested": {"pretraining": {"tasks": ["task1"], "pretraining": BASE["pretraining"]}},
    "too": {"pretraining": {"tasks": ["task2"], "pretraining": BASE["pretraining"]}},
}
"""Methods of which two begin before their pretraining with that of the first."""


def test_the_deepest_pretraining_is_made_first_and_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[str]] = []
    execute = runner._execute

    def noted(todo: Any, *given: Any, **options: Any) -> Any:
        rounds.append([str(next(iter(one.config["tasks"] or ["all"]))) for one in todo])
        return execute(todo, *given, **options)

    monkeypatch.setattr(runner, "_execute", noted)
    run_study(study(tmp_path, base=SHORT, methods=NESTED, seeds=[0]), tmp_path / "out", progress=False)
    assert rounds == [["auxiliary"], ["task1", "task2"], ["all", "all", "all"]]
    folders = [path.relative_to(tmp_path / "out").parts for path in (tmp_path / "out").rglob("model.safetensors")]
    assert sorted(len(parts) for parts in folders) == [3] * 6


def test_a_mistake_in_a_pretraining_is_said_with_its_method_when_the_study_is_read(tmp_path: Path) -> None:
    methods = {"bad": {"pretraining": {"training": {"epoch": 3}}}}
    message = r"^`pretraining` in .*some\.yaml, method 'bad' is not valid:\n  training\.epoch: unknown key 'epoch'"
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, methods=methods)


@pytest.mark.parametrize("called", ["the path", ".", "../plain_seed-0"])
def test_a_run_of_a_study_is_resumed_with_the_studys_pretraining(
    copied: Path, finished: Path, called: str, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied / "runs" / "plain_seed-0"
    (folder / "summary.json").unlink()
    monkeypatch.chdir(folder if called == "." else copied / "runs" / "masked_seed-0")
    resume(folder if called == "the path" else called, progress=False)
    assert len(ran) == 1
    assert not (folder / "pretraining").exists()
    assert pretrainings(copied) == pretrainings(finished)
    assert_same_models(finished, copied, 10)


@pytest.mark.slow
@pytest.mark.parametrize("methods", [METHODS, NESTED], ids=["flat", "nested"])
def test_jobs_side_by_side_share_it_too(methods: dict[str, Any], tmp_path: Path) -> None:
    for jobs in (1, 2):
        with use_threads(3 - jobs):
            assert run_study(study(tmp_path, methods=methods), tmp_path / f"{jobs}", jobs=jobs, progress=False) == {}
    assert_same_models(tmp_path / "1", tmp_path / "2", 10 if methods is METHODS else 12)
