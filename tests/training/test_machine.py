"""A run's figures depend on the number of threads that it was given, not on that of the process it runs in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ConfigError, ParameterError, ReproducibilityWarning
from sparsemtl.kernels import compiled
from sparsemtl.runs.run import run
from sparsemtl.storage.files import read_tensors, read_tree
from sparsemtl.storage.yaml_text import dump_yaml
from sparsemtl.study.grid import read_study
from sparsemtl.study.runner import run_study
from sparsemtl.training.processes.machine import machine, machine_changes, use_threads

ROWS, WIDTH = 1000, 64


class Killed(Exception):
    pass


class Dying(TensorLoader):
    """A loader that dies before its third epoch."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        if self.passes > 2:
            raise Killed
        return super().__iter__()


def loaders(kind: type[TensorLoader] = TensorLoader) -> tuple[TensorLoader, TensorLoader]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    targets = {"a": x[:, :3].argmax(1), "b": x[:, 0] * x[:, 1]}
    return kind(x, targets, batch_size=500, shuffle=True), TensorLoader(x, targets, batch_size=ROWS)


def trainer(folder: Path | None = None, **options: Any) -> sm.Trainer:
    """A trainer of a network whose sums are long enough to be split between threads."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(WIDTH, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 32))
    model = sm.SharedBottom(encoder, [sm.Classification("a", 3), sm.Regression("b")])
    return sm.Trainer(model, epochs=3, folder=folder, accelerator="cpu", progress=False, **options)


def trained(threads: int, process: int) -> dict[str, torch.Tensor]:
    with use_threads(process):
        own = trainer(threads=threads).fit(*loaders())
        assert torch.get_num_threads() == process
    return own.model.state_dict()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_trainer_gives_the_same_bits_in_a_process_of_any_number_of_threads(threads: int) -> None:
    one, other = (trained(threads, process) for process in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_trainer_leaves_the_number_of_threads_unless_it_is_given_one(tmp_path: Path) -> None:
    for threads, found in ((None, 2), (1, 1), (3, 3)):
        with use_threads(2):
            trainer(tmp_path / f"{threads}", threads=threads).fit(*loaders())
            assert torch.get_num_threads() == 2
        assert json.loads((tmp_path / f"{threads}" / "environment.json").read_text())["threads"] == found


def test_the_number_of_threads_comes_back_after_an_error() -> None:
    with use_threads(1), pytest.raises(Killed):
        trainer(threads=2).fit(*loaders(Dying))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_whole_number_of_at_least_one(threads: Any, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'threads' parameter of Trainer must be an int"):
        trainer(threads=threads)
    with pytest.raises(ConfigError, match=r"training\.threads: expected an int in \[1, inf\), got"):
        run({"training": {"threads": threads}}, tmp_path / "run")


# Resuming


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a run with two threads that was killed in its third epoch."""
    with use_threads(2), pytest.raises(Killed):
        trainer(tmp_path / "killed").fit(*loaders(Dying))
    return tmp_path / "killed"


def test_a_resumed_run_takes_the_number_of_threads_that_it_began_with(killed: Path, tmp_path: Path) -> None:
    with use_threads(2):
        trainer(tmp_path / "whole").fit(*loaders())
    resumed = trainer(killed).fit(*loaders(), resume=True)
    assert (resumed.threads, torch.get_num_threads()) == (2, 1)
    assert json.loads((killed / "environment.json").read_text())["threads"] == 2
    whole, found = (read_tensors(folder / "model.safetensors")[0] for folder in (tmp_path / "whole", killed))
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_run_resumed_with_another_number_of_threads_says_so(killed: Path) -> None:
    with pytest.warns(ReproducibilityWarning, match="goes on otherwise than it began: threads 2 there and 3 here"):
        trainer(killed, threads=3).fit(*loaders(), resume=True)


def test_a_run_resumed_on_another_machine_says_so(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine(torch.device("cpu"))
    elsewhere = here | {"processor": "Another 9000", "torch": "9.0"}
    monkeypatch.setattr("sparsemtl.training.checkpoints.resuming.machine", lambda device: elsewhere)
    words = f"processor {here['processor']} there and Another 9000 here; torch {here['torch']} there and 9.0 here"
    with pytest.warns(ReproducibilityWarning) as caught:
        trainer(killed).fit(*loaders(), resume=True)
    assert words in str(caught[0].message)


def test_a_run_resumed_without_its_kernels_says_so(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_asked", {"group_lasso"})
    monkeypatch.setattr(compiled, "_found", lambda name: (None, "C++ (g++ 12)"))
    with use_threads(2), pytest.raises(Killed):
        trainer(killed).fit(*loaders(Dying), overwrite=True)
    monkeypatch.setattr(compiled, "_asked", set())
    monkeypatch.setattr(compiled, "_found", lambda name: (None, "torch"))
    with pytest.warns(ReproducibilityWarning, match=r"kernel group_lasso C\+\+ \(g\+\+ 12\) there and torch here"):
        trainer(killed).fit(*loaders(), resume=True)


def test_a_checkpoint_knows_its_machine(killed: Path) -> None:
    progress = read_tree(killed / "checkpoints" / "last.safetensors")["progress"]
    assert progress["threads"] == 2
    assert progress["machine"] == machine(torch.device("cpu"))


def test_machines_differ_by_what_both_know() -> None:
    here = machine(torch.device("cpu"))
    assert all(isinstance(value, str) and value for value in here.values())
    assert machine_changes(here, here) == machine_changes({}, here) == []
    assert machine_changes({"torch": "1.0"}, here) == [f"torch 1.0 there and {here['torch']} here"]


# Runs and studies

WIDE = {
    "encoder": {"name": "mlp", "hidden": [256, 64]},
    "training": {"epochs": 2, "batch_size": 512, "accelerator": "cpu"},
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "samples.safetensors", "config.yaml")}


def test_a_run_has_one_thread_whatever_the_process_has(tmp_path: Path) -> None:
    for process in (1, 2):
        with use_threads(process):
            run(WIDE, tmp_path / f"{process}", progress=False)
            assert torch.get_num_threads() == process
        assert json.loads((tmp_path / f"{process}" / "environment.json").read_text())["threads"] == 1
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")


def test_data_and_weights_are_made_with_the_threads_of_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    """Statistics of the data and drawn weights are sums too."""
    seen: list[int] = []
    for target in ("sparsemtl.runs.spec:RunSpec._whole", "sparsemtl.runs.models:_model"):
        monkeypatch.setattr(target.replace(":", "."), _recording(resolve_name(target), seen))
    finished = _recording(str, seen)
    run({**WIDE, "training": {**WIDE["training"], "threads": 3}}, tmp_path / "run", progress=False, finished=finished)
    assert seen == [3, 3, 3]
    assert torch.get_num_threads() == 1


def _recording(function: Any, seen: list[int]) -> Any:
    def recorded(*given: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return function(*given, **options)

    return recorded


@pytest.mark.slow
def test_the_tables_of_a_study_do_not_depend_on_the_number_of_jobs(tmp_path: Path) -> None:
    source = {"base": WIDE, "methods": {"stl": {"architecture": "single-task"}, "dense": {}}, "seeds": [0, 1]}
    (tmp_path / "study.yaml").write_text(dump_yaml(source), encoding="utf-8")
    tables = []
    for jobs, process in ((1, 1), (1, 2), (2, 2)):
        out = tmp_path / f"{jobs}-{process}"
        with use_threads(process):
            run_study(read_study(tmp_path / "study.yaml"), out, jobs=jobs, progress=False)
        rows = list(csv.DictReader((out / "results.csv").open(newline="", encoding="utf-8")))
        tables.append([row for row in rows if "seconds" not in row["metric"]])
    assert tables[0] == tables[1] == tables[2]
