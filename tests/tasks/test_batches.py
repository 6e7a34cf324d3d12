from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import Classification, Regression, SharedBottom, Task, fisher_masks
from sparsemtl.errors import LabelError
from sparsemtl.tasks.batches import (
    Group,
    as_group,
    check_loaders,
    evaluation_groups,
    groups_for,
    per_task,
    to_device,
)

X = torch.arange(6.0).view(3, 2)
LABELS = torch.tensor([0, 1, 0])
BOTH = {"a": LABELS, "value": LABELS.float()}


def tasks(*names: str) -> dict[str, Task]:
    known: list[Task] = [Classification("a", 2), Regression("b", target="value")]
    return {task.name: task for task in known if not names or task.name in names}


def assert_group(group: Group, x: object, targets: dict[str, Tensor], names: tuple[str, ...]) -> None:
    assert group.x is x
    assert dict(group.targets) == targets
    assert group.tasks == names


@pytest.mark.parametrize("container", [tuple, list])
def test_a_batch_for_all_tasks_is_one_group(container: type) -> None:
    assert_group(as_group(container((X, BOTH)), tasks()), X, BOTH, ("a", "b"))


def test_bare_labels_are_those_of_the_only_task() -> None:
    assert_group(as_group((X, LABELS), tasks("b")), X, {"value": LABELS}, ("b",))


def test_bare_labels_are_those_of_the_loaders_owner() -> None:
    assert_group(as_group((X, LABELS), tasks(), owner="b"), X, {"value": LABELS}, ("b",))
    assert_group(as_group((X, BOTH), tasks(), owner="a"), X, BOTH, ("a",))


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((X, LABELS), "got bare labels"),
        (X, "got Tensor"),
        ({"x": X}, "got dict"),
        ((X,), "got tuple of 1 items"),
        ([X, LABELS, LABELS], "got list of 3 items"),
        ((X, [0, 1, 0]), r"got \(x, list\)"),
        ((X, None), r"got \(x, NoneType\)"),
    ],
)
def test_a_batch_of_another_form_is_refused(batch: Any, found: str) -> None:
    with pytest.raises(LabelError, match=rf"\(x, {{task: labels}}\).*{found}\."):
        as_group(batch, tasks())


def test_every_tensor_of_a_nest_moves_and_nothing_else() -> None:
    nest = {"left": [X, 3, "text"], "right": (X, None)}
    moved = to_device(nest, "meta")
    assert [moved["left"][0].device.type, moved["right"][0].device.type] == ["meta", "meta"]
    assert moved["left"][1:] == [3, "text"]
    assert isinstance(moved["right"], tuple)
    assert X.device.type == "cpu"


def test_a_group_moves_with_its_inputs_and_labels() -> None:
    group = Group({"x": X}, BOTH, ("a",)).to("meta")
    assert group.x["x"].is_meta
    assert all(labels.is_meta for labels in group.targets.values())
    assert group.tasks == ("a",)


def shared() -> list[Any]:
    return [(X, BOTH), (X + 10, BOTH)]


def apart() -> dict[str, list[Any]]:
    return {"b": [(X + 20, LABELS), (X + 30, LABELS)], "a": [(X, LABELS)]}


def told(groups: Any) -> list[tuple[float, tuple[str, ...], list[str]]]:
    """First input, tasks and targets of every group."""
    return [(float(group.x[0, 0]), group.tasks, sorted(group.targets)) for group in groups]


def test_a_task_reads_all_batches_of_a_shared_loader() -> None:
    assert told(groups_for(shared(), tasks()["b"])) == [(0, ("b",), ["a", "value"]), (10, ("b",), ["a", "value"])]


def test_a_task_reads_its_own_loader_only() -> None:
    assert told(groups_for(apart(), tasks()["b"])) == [(20, ("b",), ["value"]), (30, ("b",), ["value"])]


def test_evaluation_reads_a_shared_input_once() -> None:
    assert told(evaluation_groups(shared(), tasks())) == [
        (0, ("a", "b"), ["a", "value"]),
        (10, ("a", "b"), ["a", "value"]),
    ]


def test_evaluation_reads_every_tasks_loader_in_the_tasks_order() -> None:
    assert told(evaluation_groups(apart(), tasks())) == [
        (0, ("a",), ["a"]),
        (20, ("b",), ["value"]),
        (30, ("b",), ["value"]),
    ]


def test_a_mapping_is_a_loader_a_task() -> None:
    assert per_task(apart())
    assert not per_task(shared())


def test_loaders_fit_the_tasks() -> None:
    check_loaders(shared(), tasks())
    check_loaders(apart(), tasks())
    with pytest.raises(LabelError, match=r"loaders: task 'a' has no loader; found \['b'\]"):
        check_loaders({"b": []}, tasks())
    with pytest.raises(LabelError, match=r"loaders: unknown task 'digt'\. Did you mean 'digit'\?"):
        check_loaders({"digt": []}, {"digit": Classification("digit", 2)})


@pytest.mark.parametrize("nothing", [None, 5])
def test_what_is_no_loader_is_named(nothing: Any) -> None:
    with pytest.raises(LabelError, match=f"a loader yields batches.*got {nothing}"):
        check_loaders(nothing, tasks())
    with pytest.raises(LabelError, match=f"the loader of task 'a' yields batches.*got {nothing}"):
        check_loaders({**apart(), "a": nothing}, tasks())
    with pytest.raises(LabelError, match=f"a loader yields batches.*got {nothing}"):
        fisher_masks(SharedBottom(nn.Linear(3, 2), list(tasks().values())), nothing)
