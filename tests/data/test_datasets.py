"""What every data set keeps to, whatever is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from object_files import FOLDERS, SMALL_OBJECTS
from torch import Tensor

from sparsemtl.data import DATASETS, LazySplit, Split, TaskData
from sparsemtl.data.tables.coded import CodedSplit
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.tasks import DenseTask, Task, TokenClassification

SMALL: dict[str, dict[str, Any]] = {
    "multi-mnist": {"train_size": 90, "test_size": 30},
    "multi-fashion": {"train_size": 90, "test_size": 30},
    "multi-fashion-mnist": {"train_size": 90, "test_size": 30},
    "pair-attributes": {"train_size": 90, "test_size": 30},
    "scenes": {"train_size": 9, "validation_size": 3, "test_size": 3, "height": 16, "width": 16},
    "nyu-v2": {"workers": 0},
    "cityscapes": {"workers": 0},
    "celeba": {"workers": 0},
    "celebamask-hq": {"workers": 0, "size": 16, "split": "random"},
    "sentences": {"train_size": 90, "validation_size": 20, "test_size": 30},
    "two-regressions": {"train_size": 90, "validation_size": 20, "test_size": 30},
    "clustered-regressions": {"train_size": 90, "validation_size": 20, "test_size": 30},
    "table": {"path": "shop.csv", "targets": {"bought": "classification"}},
    "label-subsets": {"source": {"name": "digits", "task": "digit"}, "classes": 6, "overlap": 2},
    "image-folders": {"tasks": FOLDERS, "auxiliary": "photos/everything", "size": 8, "workers": 0},
    **SMALL_OBJECTS,
}
TABLES = ("census-income", "movielens-100k", "student", "two-regressions", "clustered-regressions", "table")
TEXTS = ("sentences",)


def that_take(parameter: str) -> list[str]:
    """The data sets that have a parameter."""
    return [name for name in DATASETS if parameter in parameters_of(DATASETS[name])]


def build(name: str, root: Path, **options: Any) -> TaskData:
    return DATASETS.build(name, root=root, **{**SMALL.get(name, {}), **options})


def splits(data: TaskData) -> list[tuple[str, Split]]:
    """Every split with its task, or each task with the split of all, in memory."""
    parts = [
        {task.name: part[task.name] if isinstance(part, dict) else part for task in data.tasks}
        for part in (data.train, data.validation, data.test)
    ]
    loaded = {id(split): in_memory(split) for part in parts for split in part.values()}
    return [(name, loaded[id(split)]) for part in parts for name, split in part.items()]


def in_memory(split: Any) -> Split:
    loaded = split.load() if isinstance(split, (LazySplit, CodedSplit)) else split
    assert isinstance(loaded, Split)
    return loaded


def no_outputs(task: Task, split: Split) -> Tensor:
    """Outputs of nothing but zeros."""
    if isinstance(task, TokenClassification):
        return torch.zeros(len(split), *split.shape, task.outputs)
    return torch.zeros(len(split), task.outputs, *(split.shape[1:] if isinstance(task, DenseTask) else ()))


@each("name", DATASETS)
def test_inputs_are_numbers_of_the_announced_shape(name: str, laid_root: Path) -> None:
    data = build(name, laid_root)
    for _, split in splits(data):
        assert split.x.shape[1:] == data.input_shape
        assert split.x.dtype == (torch.int64 if name in TEXTS else torch.float32)
        assert bool(split.x.isfinite().all())


@each("name", [name for name in DATASETS if name not in (*TABLES, *TEXTS)])
def test_images_lie_in_the_unit_range(name: str, laid_root: Path) -> None:
    for _, split in splits(build(name, laid_root)):
        assert split.x.min() >= 0
        assert split.x.max() <= 1
        assert split.x.max() > 0.5


@each("name", DATASETS)
def test_every_task_can_read_its_labels(name: str, laid_root: Path) -> None:
    data = build(name, laid_root)
    tasks = {task.name: task for task in data.tasks}
    for task, split in splits(data):
        labels = tasks[task].labels(split.targets)
        assert bool(tasks[task].labelled(labels).all())
        assert torch.isfinite(tasks[task].loss(no_outputs(tasks[task], split), labels))


@each("name", that_take("seed"))
def test_the_seed_alone_decides_the_data(name: str, laid_root: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = build(name, laid_root), build(name, laid_root), build(name, laid_root, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    for (_, one), (_, two) in zip(splits(first), splits(again), strict=True):
        assert torch.equal(one.x, two.x)
        assert all(torch.equal(one.targets[target], two.targets[target]) for target in one.targets)
    assert not torch.equal(splits(first)[0][1].x, splits(other)[0][1].x)


@each("name", that_take("seed"))
def test_how_the_parts_were_made_is_noted(name: str, laid_root: Path) -> None:
    assert any("seed 5" in note for note in build(name, laid_root, seed=5).notes)


@each("name", DATASETS)
def test_a_data_set_bears_its_registered_name_and_says_what_it_is(name: str, laid_root: Path) -> None:
    assert build(name, laid_root).name == name
    assert len(DATASETS.summary(name)) > 20


@each("name", that_take("seed"))
def test_a_value_out_of_range_is_refused_by_name(name: str, laid_root: Path) -> None:
    with pytest.raises(
        ParameterError, match=r"'seed' parameter of \w+ must be an int in \[0, inf\)( or None)?\. Got -1"
    ):
        build(name, laid_root, seed=-1)


def test_a_seed_that_stands_for_the_run_s_needs_a_run(laid_root: Path) -> None:
    with pytest.raises(ParameterError, match="seed: None stands for a run's seed"):
        build("label-subsets", laid_root, seed=None)


@each("name", that_take("validation"))
@each("validation", [0.0, 1.0, 1.5, -0.1])
def test_a_bad_validation_share_is_refused(name: str, validation: float, laid_root: Path) -> None:
    with pytest.raises(ParameterError, match=r"'validation' parameter of \w+ must be a float in \(0, 1\)"):
        build(name, laid_root, validation=validation)


def test_an_unknown_data_set_or_option_is_refused_with_the_nearest_name(laid_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data set 'minst'. Did you mean 'mnist'?"):
        DATASETS.build("minst")
    with pytest.raises(ConfigError, match=r"unknown parameter 'validatoin'. Did you mean 'validation'?"):
        DATASETS.build("mnist", root=laid_root, validatoin=0.2)
