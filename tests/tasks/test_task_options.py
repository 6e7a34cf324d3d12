"""A configuration changes the options of a data set's tasks, and names what is wrong with them."""

from __future__ import annotations

import pickle
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sparsemtl import Classification, Depth, Segmentation, Task
from sparsemtl.errors import ConfigError
from sparsemtl.runs.changes import merge, override
from sparsemtl.runs.config import check
from sparsemtl.runs.run import resume, run
from sparsemtl.runs.spec import RunSpec
from sparsemtl.storage.yaml_text import read_yaml
from sparsemtl.tasks import TASKS, Regression
from sparsemtl.tasks.options import options_of, with_options

ROOMS = {
    "data": {"name": "scenes", "train_size": 4, "validation_size": 2, "test_size": 2, "height": 8, "width": 8},
    "encoder": {"name": "resnet18", "width": 4},
}


def tasks_of(config: dict[str, Any], tmp_path: Path) -> dict[str, Task]:
    complete = check(merge(config, {"data": {"root": str(tmp_path)}}))
    return {task.name: task for task in RunSpec(complete).data.tasks}


def test_options_reach_the_tasks(tmp_path: Path) -> None:
    options = {
        "segmentation": {"label_smoothing": 0.1, "class_weights": [1, 1, 1, 1, 1, 2, 2, 0.5], "metrics": ["miou"]},
        "depth": {"criterion": "mse", "scale": "image"},
    }
    tasks = tasks_of({**ROOMS, "task_options": options, "weights": {"depth": 2}}, tmp_path)
    plain = tasks_of(ROOMS, tmp_path)
    segmentation, depth = tasks["segmentation"], tasks["depth"]
    assert isinstance(segmentation, Segmentation)
    assert isinstance(depth, Depth)
    assert (segmentation.label_smoothing, segmentation.class_weights) == (0.1, options["segmentation"]["class_weights"])
    assert list(segmentation.metrics()) == ["miou"]
    assert segmentation.class_names == plain["segmentation"].class_names
    assert (depth.criterion, depth.scale, depth.weight) == ("mse", "image", 2)
    assert list(depth.metrics()) == list(plain["depth"].metrics())
    assert plain["depth"].criterion == "l1"


WRONG = [
    ({"depht": {"criterion": "mse"}}, "task_options: unknown task 'depht'. Did you mean 'depth'?"),
    ({"depth": {"criterion": "rmse"}}, "task_options.depth.criterion: expected one of 'l1', 'mse', got 'rmse'."),
    (
        {"depth": {"label_smoothing": 0.1}},
        "task_options.depth: unknown option of Depth 'label_smoothing'. Known: criterion, "
        "higher_is_better, likelihood, loss, loss_weights, metrics, scale.",
    ),
    (
        {"scene": {"label_smoothing": 1.0}},
        "task_options.scene.label_smoothing: expected a float in [0, 1), got 1.0.",
    ),
    ({"scene": {"metrics": ["f1_micro"]}}, "task_options.scene: task 'scene': unknown metric 'f1_micro'. Did you mean"),
    (
        {"scene": {"metrics": "accuracy"}},
        "task_options.scene.metrics: expected a mapping or a sequence of strings or None, got 'accuracy'.",
    ),
    (
        {"scene": {"class_weights": [1, 2]}},
        "task_options.scene: task 'scene': `class_weights` must be 6 finite",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_place(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        tasks_of({**ROOMS, "task_options": options}, tmp_path)


@pytest.mark.parametrize("name", ["critrion", "weight", "target", "predict", "ignore_index", "background"])
def test_an_option_of_no_kind_is_named_before_any_data_are_read(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check({"task_options": {"digit": {name: 1}}}, where="my.yaml", origins={"task_options.digit": "line 3"})
    first, second = str(caught.value).splitlines()
    assert first == "my.yaml is not valid:"
    assert second.startswith(f"  task_options.digit (line 3): unknown task option '{name}'.")
    assert "criterion" in second


def test_the_command_line_and_studies_merge_options() -> None:
    config = {"task_options": {"depth": {"criterion": "mse"}}}
    changed = override(config, ["task_options.depth.scale=image", "task_options.scene.label_smoothing=0.1"])
    assert changed["task_options"] == {
        "depth": {"criterion": "mse", "scale": "image"},
        "scene": {"label_smoothing": 0.1},
    }


def test_a_run_records_its_options_and_is_resumed_with_them(tmp_path: Path, tiny: Any) -> None:
    config = {**tiny, "task_options": {"digit": {"label_smoothing": 0.2, "metrics": ["f1_macro", "accuracy"]}}}
    found = run(config, tmp_path / "run", progress=False)
    assert list(found["digit"]) == ["loss", "f1_macro", "accuracy"]
    assert read_yaml(tmp_path / "run" / "config.yaml")["task_options"] == config["task_options"]
    (tmp_path / "run" / "summary.json").unlink()
    assert resume(tmp_path / "run", progress=False) == found


@pytest.mark.parametrize("kind", TASKS)
def test_options_are_those_that_the_data_do_not_decide(kind: str) -> None:
    assert "metrics" in options_of(TASKS[kind])
    assert not {"weight", "target", "predict", "ignore_index", "background"} & set(options_of(TASKS[kind]))


def test_a_task_made_anew_keeps_what_it_was_made_with() -> None:
    task = Classification("t", ["a", "b"], ignore_index=7, target="y")
    changed = with_options(task, {"label_smoothing": 0.5})
    assert isinstance(changed, Classification)
    assert (changed.class_names, changed.ignore_index, changed.target) == (["a", "b"], 7, "y")
    assert with_options(task, {}) is task
    for copied in (deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert copied.with_parameters(label_smoothing=0.0).ignore_index == 7
        assert copied.label_smoothing == 0.5


class Own(Regression):
    """A kind of the user's own, with an option of its own."""

    def __init__(self, name: str, *, sharpness: float = 1.0, **options: Any) -> None:
        super().__init__(name, **options)
        self.sharpness = sharpness


def test_a_kind_of_the_users_own_has_options_too() -> None:
    changed = with_options(Own("t", criterion="l1"), {"sharpness": 3.0})
    assert isinstance(changed, Own)
    assert (changed.sharpness, changed.criterion) == (3.0, "l1")
