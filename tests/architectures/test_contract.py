"""What every architecture promises; a new one enters these tests by one line of `MODELS`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsemtl import Classification, MultiLabel, MultiTaskModel, Regression, SharedBottom, SingleTask, Task
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.errors import ParameterError

MODELS: dict[str, Callable[[nn.Module, list[Task]], MultiTaskModel]] = {
    "shared-bottom": SharedBottom,
    "single-task": SingleTask,
}
each_model = pytest.mark.parametrize("name", MODELS)


def tasks() -> list[Task]:
    return [Classification("digit", 4), MultiLabel("shape", 3), Regression("ink")]


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6))


def model_of(name: str) -> MultiTaskModel:
    torch.manual_seed(0)
    model = MODELS[name](encoder(), tasks())
    with torch.no_grad():
        model(batch())  # the heads learn their width
    return model


def batch() -> Tensor:
    return torch.linspace(-1, 1, 40).view(8, 5)


def reached(model: MultiTaskModel, task: str) -> set[str]:
    """Names of the parameters to which the task's output has a gradient."""
    model.zero_grad()
    model(batch(), tasks=[task])[task].square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_every_registered_architecture_is_tested_here() -> None:
    assert set(MODELS) == set(ARCHITECTURES)


@each_model
def test_users_are_exactly_the_tasks_whose_output_a_parameter_reaches(name: str) -> None:
    model = model_of(name)
    users = model.users()
    assert list(users) == [name for name, _ in model.named_parameters()]
    for task in model.tasks:
        assert reached(model, task) == {name for name, its_tasks in users.items() if task in its_tasks}


@each_model
def test_a_parameter_is_shared_or_one_tasks_own(name: str) -> None:
    model = model_of(name)
    parts = [model.shared_parameters(), *(model.task_parameters(task) for task in model.tasks)]
    found = {name: id(p) for part in parts for name, p in part.items()}
    assert found == {name: id(p) for name, p in model.named_parameters()}
    assert sum(len(part) for part in parts) == len(found)


@each_model
def test_shared_and_own_parameters_agree_with_their_users(name: str) -> None:
    model = model_of(name)
    users = model.users()
    assert all(users[name] == set(model.tasks) for name in model.shared_parameters())
    for task in model.tasks:
        assert all(users[name] == {task} for name in model.task_parameters(task))


@each_model
def test_a_model_is_independent_if_no_parameter_has_two_users(name: str) -> None:
    model = model_of(name)
    assert model.independent == all(len(users) == 1 for users in model.users().values())
    assert model.independent == (not model.shared_parameters())


@each_model
def test_every_task_gets_an_output_of_its_width_in_the_order_asked(name: str) -> None:
    model = model_of(name)
    assert {t: tuple(o.shape) for t, o in model(batch()).items()} == {"digit": (8, 4), "shape": (8, 3), "ink": (8, 1)}
    assert list(model(batch())) == ["digit", "shape", "ink"]
    assert list(model(batch(), tasks=("ink", "digit"))) == ["ink", "digit"]
    assert model(batch(), tasks=[]) == {}


@each_model
def test_asking_for_fewer_tasks_does_not_change_their_outputs(name: str) -> None:
    model = model_of(name).eval()
    together = model(batch())
    for task in model.tasks:
        assert torch.equal(model(batch(), tasks=[task])[task], together[task])


@each_model
def test_a_state_dict_restores_the_outputs(name: str) -> None:
    model, other = model_of(name), model_of(name)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    assert not torch.equal(model.eval()(batch())["ink"], other.eval()(batch())["ink"])
    other.load_state_dict(model.state_dict())
    for task, output in model(batch()).items():
        assert torch.equal(other(batch())[task], output)


@each_model
@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model(batch(), tasks=["digits"]),
        lambda model: model.task_modules("digits"),
        lambda model: model.task_parameters("digits"),
        lambda model: model.check_task("digits"),
    ],
    ids=["forward", "task_modules", "task_parameters", "check_task"],
)
def test_a_task_that_is_not_there_is_refused_with_the_nearest_name(
    name: str, ask: Callable[[MultiTaskModel], object]
) -> None:
    model = model_of(name)
    with pytest.raises(
        ParameterError, match=r"unknown task 'digits'\. Did you mean 'digit'\? Known: digit, ink, shape"
    ):
        ask(model)


@each_model
def test_heads_of_ones_own_take_the_place_of_default_ones(name: str) -> None:
    class Doubled(nn.Sequential):
        """An empty container, which is false in Python."""

        def forward(self, features: Tensor) -> Tensor:
            return 2 * features[:, :4]

    model = ARCHITECTURES.build(name, encoder(), tasks(), {"digit": Doubled()})
    with torch.no_grad():
        model(batch())
    assert model.task_parameters("ink").keys() >= {"heads.ink.weight"}
    assert not any(name.startswith("heads.digit") for name in model.users())
    features = {**model.shared_modules(), **model.task_modules("digit")}
    first = next(module for key, module in features.items() if key.startswith("encoder"))
    torch.testing.assert_close(model.eval()(batch())["digit"], 2 * first(batch())[:, :4])


@each_model
def test_a_head_of_two_tasks_is_refused(name: str) -> None:
    head = nn.Linear(6, 1)
    with pytest.raises(ParameterError, match="heads: tasks 'a' and 'b' were given the same parameters"):
        ARCHITECTURES.build(name, encoder(), [Regression("a"), Regression("b")], {"a": head, "b": head})


@each_model
def test_a_head_of_an_unknown_task_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match=r"heads: unknown task 'ing'\. Did you mean 'ink'\?"):
        ARCHITECTURES.build(name, encoder(), tasks(), {"ing": nn.Linear(6, 1)})


@each_model
def test_it_runs_as_torch_runs_any_module_functionally(name: str) -> None:
    model = model_of(name).eval()
    doubled = {name: 2 * p for name, p in model.named_parameters()}
    found = torch.func.functional_call(model, doubled, (batch(),))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    for task, output in model(batch()).items():
        assert torch.equal(found[task], output)
