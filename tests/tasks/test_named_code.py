"""Losses, likelihoods and metrics of the user's own, named in configurations by file or module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.errors import ConfigError
from sparsemtl.registry import plugins
from sparsemtl.registry.named_code import load_code, names_code
from sparsemtl.registry.plugins import absolute_code
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.yaml_text import dump_yaml, read_yaml
from sparsemtl.study.grid import read_study
from sparsemtl.tasks.options import with_options

CODE = """
import torch
from torch import nn
from torch.distributions import Normal

def absolute(output, label, power=1):
    return (output - label).abs() ** power

def worst(output, label):
    return (output - label).abs().max()

def normal(output):
    return Normal(output, 2.0)

class Scaled(nn.Module):
    def __init__(self, start=1.0):
        super().__init__()
        self.scale = nn.Parameter(start + torch.rand(()))

    def forward(self, output, label):
        return (self.scale * output - label).square().mean()
"""
TINY: dict[str, Any] = {
    "data": "digits",
    "tasks": ["digit", "slant"],
    "encoder": {"name": "mlp", "hidden": [8]},
    "training": {"epochs": 1, "batch_size": 256, "accelerator": "cpu", "measure_cost": False},
}
OUTPUT, LABEL = torch.tensor([[1.0], [4.0]]), torch.zeros(2, 1)


@pytest.fixture(autouse=True)
def code(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "named_losses.py"
    file.write_text(CODE)
    plugins._load.cache_clear()
    yield file
    sys.modules.pop("named_losses", None)
    plugins._load.cache_clear()


def test_code_is_named_by_a_file_or_a_module_and_a_name() -> None:
    for named in (
        "losses.py:focal",
        "/x/a b.py:f",
        "pkg.losses:Loss",
        "torch.nn:HuberLoss",
        {"name": "a.py:f", "b": 1},
    ):
        assert names_code(named), named
    for other in ("accuracy", "loss", "a:", ":b", "a.py", "mse: 1", 3, {"mae": "mae"}, None):
        assert not names_code(other), other


def test_files_start_at_a_folder_and_modules_stay(tmp_path: Path) -> None:
    nest = {"depth": {"loss": "a.py:f", "metrics": ["mae", "b.py:g"], "likelihood": {"name": "torch.nn:X", "n": 1}}}
    assert absolute_code(nest, tmp_path)["depth"] == {
        "loss": f"{tmp_path.resolve() / 'a.py'}:f",
        "metrics": ["mae", f"{tmp_path.resolve() / 'b.py'}:g"],
        "likelihood": {"name": "torch.nn:X", "n": 1},
    }


def test_functions_classes_and_their_parameters_are_loaded(code: Path) -> None:
    assert load_code(f"{code}:absolute")(OUTPUT, LABEL).flatten().tolist() == [1.0, 4.0]
    assert load_code({"name": f"{code}:absolute", "power": 2})(OUTPUT, LABEL).flatten().tolist() == [1.0, 16.0]
    huber = load_code({"name": "torch.nn:HuberLoss", "delta": 0.5})
    assert isinstance(huber, nn.HuberLoss)
    assert huber.delta == 0.5


def test_losses_likelihoods_and_metrics_reach_the_task(code: Path) -> None:
    task = with_options(
        sm.Regression("slant"),
        {
            "loss": {"far": f"{code}:absolute", "huber": "torch.nn:SmoothL1Loss"},
            "loss_weights": {"far": 2.0},
            "likelihood": f"{code}:normal",
            "metrics": [f"{code}:worst", "mae"],
            "higher_is_better": {"worst": False},
        },
    )
    assert task.loss_names == ("loss", "loss_far", "loss_huber")
    assert list(task.metrics()) == ["worst", "mae"]
    assert task.has_own_likelihood


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"loss": "absolute"},
        r"task_options.slant.loss: expected `file.py:name` or `package.module:name` .* got 'absolute'",
    ),
    (
        {"loss": "{}:absolut"},
        r"slant.loss: .*unknown function or class 'absolut'. Did you mean 'absolute'\?",
    ),
    ({"loss": "none.py:f"}, r"task_options.slant.loss: plugin .*none.py: there is no such file"),
    (
        {"loss": "no_such_package.losses:f"},
        r"slant.loss: plugin 'no_such_package.losses': there is no such module",
    ),
    ({"loss": {"name": "torch.nn:HuberLoss", "gamma": 1}}, r"torch.nn:HuberLoss\(gamma=1\): .*unexpected keyword"),
    ({"loss": 3}, r"task_options.slant: .*`loss` must be a function .* got int"),
    ({"likelihood": "normal"}, r"task_options.slant.likelihood: expected `file.py:name`"),
    ({"metrics": {"worst": "{}:worst"}}, r"metric 'worst' is a function; pass its direction, higher_is_better"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_code_that_cannot_be_loaded_is_named_with_its_place(options: Any, message: str, code: Path) -> None:
    for name, value in options.items():
        if isinstance(value, str):
            options = {name: value.format(code)}
        elif isinstance(value, dict):
            options = {name: {k: v.format(code) if isinstance(v, str) else v for k, v in value.items()}}
    with pytest.raises(ConfigError, match=message):
        with_options(sm.Regression("slant"), options)


def test_a_run_records_its_code_and_is_loaded_with_it(code: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = {
        "loss": {"name": "named_losses.py:Scaled", "start": 2.0},
        "likelihood": "loss",
        "metrics": {"worst": "named_losses.py:worst", "r2": "r2"},
        "higher_is_better": {"worst": False},
    }
    found = run({**TINY, "task_options": {"slant": options}}, "run", progress=False)
    assert list(found["slant"]) == ["loss", "worst", "r2"]
    recorded = read_yaml(tmp_path / "run" / "config.yaml")["task_options"]["slant"]
    assert recorded["loss"]["name"] == f"{code.resolve()}:Scaled"
    monkeypatch.chdir("/")
    loaded = sm.load_run(tmp_path / "run")
    assert loaded.model.get_parameter("task_losses.slant.scale").item() != 2.0
    assert list(loaded.tasks["slant"].metrics()) == ["worst", "r2"]


def test_initial_weights_of_a_loss_come_from_the_seed_of_the_run(code: Path) -> None:
    def scale(seed: int) -> float:
        torch.rand(seed + 3)
        spec = RunSpec(check({**TINY, "seed": seed, "task_options": {"slant": {"loss": f"{code}:Scaled"}}}))
        (loss,) = [task.loss_modules() for task in spec.data.tasks if task.name == "slant"]
        assert loss is not None
        return float(loss.scale)  # type: ignore[arg-type]

    assert scale(0) == scale(0) != scale(1)


def test_methods_of_a_study_name_files_beside_it(code: Path, tmp_path: Path) -> None:
    methods = {"plain": {}, "own": {"task_options": {"slant": {"loss": "named_losses.py:absolute"}}}}
    (tmp_path / "study.yaml").write_text(dump_yaml({"base": TINY, "methods": methods, "seeds": [0]}))
    plain, own = read_study(tmp_path / "study.yaml").runs
    assert plain.config["task_options"] == {}
    assert own.config["task_options"]["slant"]["loss"] == f"{code.resolve()}:absolute"
