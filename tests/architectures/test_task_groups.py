"""Task groups: between a shared bottom and single-task networks, both of which it contains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsemtl import Classification, Regression, SharedBottom, SingleTask, TaskGroups
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel

NAMES = ["a", "b", "c"]
X = torch.linspace(-1, 1, 20).view(4, 5)


def built(architecture: type[MultiTaskModel], names: list[str] = NAMES, **options: object) -> MultiTaskModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    heads = {name: nn.Linear(6, 1) for name in NAMES}
    own = {name: heads[name] for name in names}
    return architecture(encoder, [Regression(name) for name in names], own, **options)  # type: ignore[call-arg, arg-type]


def outputs_and_gradients(model: MultiTaskModel) -> list[torch.Tensor]:
    outputs = model(X)
    sum(output.square().mean() for output in outputs.values()).backward()  # type: ignore[union-attr]
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return [*outputs.values(), *found]


def test_one_group_is_a_shared_bottom_and_groups_of_one_are_single_tasks() -> None:
    for groups, other in ((None, SharedBottom), ([NAMES], SharedBottom), ([["a"], ["b"], ["c"]], SingleTask)):
        one, two = outputs_and_gradients(built(TaskGroups, groups=groups)), outputs_and_gradients(built(other))
        assert len(one) == len(two)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_group_computes_what_a_shared_bottom_of_its_tasks_computes() -> None:
    model = built(TaskGroups, groups=[["c", "a"], ["b"]])
    for names in (["a", "c"], ["b"]):
        alone = built(SharedBottom, names)
        for task, output in alone(X).items():
            assert torch.equal(output, model(X, tasks=[task])[task])
    users = model.parameter_tasks()
    assert users["encoders.0.0.weight"] == {"a", "c"}
    assert users["encoders.1.0.weight"] == {"b"}
    assert model.summary() == {"groups": [["c", "a"], ["b"]]}


def test_the_encoder_of_a_group_runs_once_and_only_for_its_tasks() -> None:
    model = built(TaskGroups, groups=[["a", "c"], ["b"]])
    runs = [0, 0]
    for number in (0, 1):

        def count(*_: object, number: int = number) -> None:
            runs[number] += 1

        model.get_submodule(f"encoders.{number}").register_forward_hook(count)
    model(X)
    model(X, tasks=["c", "a"])
    assert runs == [2, 1]


def test_groups_divide_the_tasks() -> None:
    tasks = [Classification("a", 2), Regression("b")]
    for groups in ([["a"]], [["a", "b"], ["b"]], [["a", "b"], []], [["a"], ["d"]]):
        with pytest.raises(ParameterError, match=r"`groups` must name each of a, b once, in groups that are not empty"):
            TaskGroups(nn.Linear(5, 6), tasks, groups=groups)
