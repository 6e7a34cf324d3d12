"""A plan makes what a run and the run before it have in common once, and tells each its own tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretraining import BASE, based

from sparsemtl.data import DATASETS
from sparsemtl.runs import spec as plans
from sparsemtl.runs.changes import merge
from sparsemtl.runs.config import check
from sparsemtl.runs.run import run
from sparsemtl.runs.spec import RunSpec

NESTED = {"pretraining": {"tasks": ["task1"], "pretraining": {"optimizer": {"lr": 0.1}}}}
OTHER = {"samples_per_class": 5}
"""A change of the data."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The sections of the data sets that are built, as they come."""
    sections: list[dict[str, Any]] = []
    build = DATASETS.build

    def noted(name: str, *given: Any, **section: Any) -> Any:
        sections.append({"name": name, **section})
        return build(name, *given, **section)

    monkeypatch.setattr(plans.DATASETS, "build", noted)
    return sections


@pytest.mark.parametrize(
    ("changes", "data_sets"),
    [
        ({}, 1),
        (NESTED, 1),
        ({"pretraining": {"data": OTHER}}, 2),
        (merge(NESTED, {"pretraining": {"data": OTHER}}), 2),
        ({"data": {"seed": None}, "pretraining": {"seed": 3}}, 1),
    ],
)
def test_a_data_set_is_built_once_for_a_run_and_the_runs_before_it(
    tmp_path: Path, changes: Mapping[str, Any], data_sets: int, built: list[dict[str, Any]]
) -> None:
    run(based(training={"epochs": 1}, **changes), tmp_path / "run", progress=False)
    assert [section["name"] for section in built].count("label-subsets") == data_sets


def test_the_run_before_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Mapping[str, Any]] = []
    pretraining_config = plans.pretraining_config
    monkeypatch.setattr(
        plans, "pretraining_config", lambda config: (asked.append(config), pretraining_config(config))[1]
    )
    config = based(training={"epochs": 1})
    run(config, tmp_path / "run", progress=False)
    assert asked == [config, pretraining_config(config)]


def test_the_data_of_the_run_before_a_finished_one_are_not_built_unless_asked_for(
    tmp_path: Path, built: list[dict[str, Any]]
) -> None:
    config = based(training={"epochs": 1}, pretraining={"data": OTHER})
    run(config, tmp_path / "run", progress=False)
    for name in ("summary.json", "checkpoints/last.safetensors"):
        (tmp_path / "run" / name).unlink()
    built.clear()
    run(config, tmp_path / "run", progress=False)
    assert [section["samples_per_class"] for section in built if section["name"] == "label-subsets"] == [6]


def test_runs_with_data_in_common_weigh_and_judge_the_tasks_each_in_its_own_way() -> None:
    plan = RunSpec(
        based(
            weights={"task1": 2},
            tasks=["task1", "task2"],
            pretraining={"tasks": None, "weights": {"task1": 3}, "primary": {"task2": "f1_macro"}},
        )
    )
    assert plan.pretraining is not None
    both = [plan.data, plan.pretraining.data]
    judged = [{task.name: (task.weight, task.primary) for task in data.tasks} for data in both]
    assert judged == [
        {"task1": (2.0, None), "task2": (1.0, None)},
        {"task1": (3.0, None), "task2": (1.0, "f1_macro"), "auxiliary": (1.0, None)},
    ]
    assert torch.equal(plan.data.train["task1"].x, plan.pretraining.data.train["task1"].x)  # type: ignore[index,union-attr]


@pytest.mark.parametrize(
    ("data", "pretraining", "tasks"),
    [
        ("digits", {"tasks": ["digit"]}, ["parity", "shape", "slant"]),
        ("digits", {"data": {"missing": 0.5}, "tasks": ["digit"]}, ["parity", "shape", "slant"]),
        ("digits", {"data": {"root": "elsewhere"}, "tasks": ["digit"]}, ["digit", "parity", "shape", "slant"]),
        ("digits", {"data": "mnist", "tasks": ["digit", "parity"]}, ["digit", "parity", "shape", "slant"]),
        (BASE["data"], {"data": {"samples_per_class": 2}}, ["task1", "task2"]),
        (BASE["data"], {"data": {"source": "mnist"}}, ["task1", "task2", "auxiliary"]),
    ],
)
def test_only_tasks_that_are_trained_before_on_the_same_data_set_are_left_out(
    data: Any, pretraining: dict[str, Any], tasks: list[str]
) -> None:
    plan = RunSpec(check({"data": data, "pretraining": pretraining}))
    assert [task.name for task in plan.data.tasks] == tasks
