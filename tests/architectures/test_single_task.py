from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from sparsemtl import Classification, MultiTaskModel, Regression, SharedBottom, SingleTask, Task, Trainer
from sparsemtl.data import TensorLoader
from sparsemtl.errors import ParameterError

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: AdamW(parameters, lr=0.02),
}


def tasks() -> list[Task]:
    return [Classification("digit", 4), Regression("ink"), Regression("slant", 2)]


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 6))


def data(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    targets = {
        "digit": torch.randint(4, (24,), generator=generator),
        "ink": torch.randn(24, generator=generator),
        "slant": torch.randn(24, 2, generator=generator),
    }
    return torch.randn(24, 5, generator=generator), targets


def loader(seed: int = 0) -> TensorLoader:
    return TensorLoader(*data(seed), batch_size=8)


def together() -> SingleTask:
    torch.manual_seed(0)
    return SingleTask(encoder(), tasks(), {task.name: task.head(6) for task in tasks()})


def alone(model: SingleTask, task: str) -> SharedBottom:
    """The task's network as a model of its own."""
    return SharedBottom(deepcopy(model.encoders[task]), [model.tasks[task]], {task: deepcopy(model.heads[task])})


def train(model: MultiTaskModel, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]) -> None:
    """A loop of a user's own: the sum of the losses, one step a batch."""
    steps = optimizer(model.parameters())
    for x, targets in [batch for _ in range(4) for batch in loader()]:
        steps.zero_grad()
        sum(model.tasks[name].loss(output, targets) for name, output in model(x).items()).backward()
        steps.step()


def assert_trained_alike(model: SingleTask, single: SharedBottom, task: str) -> None:
    for ours, theirs in ((model.encoders[task], single.encoder), (model.heads[task], single.heads[task])):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), f"{task}: {name}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_together_is_training_every_task_alone(optimizer: str) -> None:
    model = together()
    singles = {task: alone(model, task) for task in model.tasks}
    start = deepcopy(model.state_dict())
    train(model, OPTIMIZERS[optimizer])
    for task, single in singles.items():
        train(single, OPTIMIZERS[optimizer])
        assert_trained_alike(model, single, task)
    assert all(not torch.equal(start[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_trainer_gives_every_task_what_it_gives_it_alone(optimizer: str) -> None:
    def fit(model: MultiTaskModel) -> None:
        options = {"epochs": 3, "accelerator": "cpu", "progress": False, "monitor": "loss"}
        trainer = Trainer(model, balancing="sum", optimizer=OPTIMIZERS[optimizer], **options)
        trainer.fit(loader(), loader(seed=1))

    model = together()
    singles = {task: alone(model, task) for task in model.tasks}
    fit(model)
    for task, single in singles.items():
        fit(single)
        assert_trained_alike(model, single, task)


def test_every_task_starts_from_a_copy_of_the_encoder_given() -> None:
    given = encoder()
    model = SingleTask(given, tasks())
    for own in model.encoders.values():
        assert own is not given
        assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in given.state_dict().items())
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


def test_a_function_makes_every_task_an_encoder_of_its_own() -> None:
    model = SingleTask(encoder, tasks())
    weights = [own[0].weight for own in model.encoders.values()]
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("container", [dict, nn.ModuleDict])
def test_tasks_may_be_given_different_encoders(container: Callable[[dict[str, nn.Module]], object]) -> None:
    given = {"slant": nn.Linear(5, 2), "ink": nn.Linear(5, 3), "digit": nn.Sequential(nn.Linear(5, 4))}
    model = SingleTask(container(given), tasks())  # type: ignore[arg-type]
    assert dict(model.encoders.items()) == given
    assert list(model.encoders) == ["digit", "ink", "slant"]
    assert model.heads["ink"].in_features == 3
    assert {name: len(output.T) for name, output in model(torch.rand(3, 5)).items()} == {
        "digit": 4,
        "ink": 1,
        "slant": 2,
    }


def test_a_task_without_an_encoder_is_named() -> None:
    with pytest.raises(ParameterError, match=r"encoders: task 'ink' has no encoder; found \['digit', 'slant'\]"):
        SingleTask({"slant": encoder(), "digit": encoder()}, tasks())


def test_an_encoder_without_a_task_is_named() -> None:
    given = {task.name: encoder() for task in tasks()} | {"depth": encoder()}
    with pytest.raises(ParameterError, match="encoders: unknown task 'depth'"):
        SingleTask(given, tasks())


@pytest.mark.parametrize("as_function", [False, True])
def test_an_encoder_of_two_tasks_is_refused_since_nothing_may_be_shared(as_function: bool) -> None:
    one = encoder()
    given = (lambda: one) if as_function else dict.fromkeys(["digit", "ink", "slant"], one)
    with pytest.raises(ParameterError, match="encoders: tasks 'digit' and 'ink' were given the same parameters"):
        SingleTask(given, tasks())


def test_encoders_without_parameters_may_be_one() -> None:
    flat = nn.Flatten()
    model = SingleTask({"digit": flat, "ink": flat, "slant": flat}, tasks())
    assert model(torch.rand(3, 5, 1))["slant"].shape == (3, 2)
    assert model.independent
