"""What a step and an evaluation compute once: checks of labels, constant weights; and no wrapper that adds nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from training_toys import loader, quiet, shared, table

import sparsemtl as sm
from sparsemtl.balancing import Balancer
from sparsemtl.errors import NonFiniteError
from sparsemtl.networks.task_networks import dense_networks
from sparsemtl.training.evaluation import Trained, evaluate
from sparsemtl.training.finite import check_gradient

CPU = torch.device("cpu")


class Fixed(Balancer):
    """Constant weights, and a count of how often they are computed."""

    constant = True

    def __init__(self) -> None:
        self.calls = 0

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        self.calls += 1
        return torch.arange(1.0, len(losses) + 1)


@pytest.mark.parametrize("update", ["joint", "average", "alternate"])
def test_constant_weights_are_computed_once_in_a_run(update: Any) -> None:
    balancer = Fixed()
    trainer = quiet(shared("abc"), balancing=balancer, sharing=sm.DenseSharing(update=update), epochs=2)
    trainer.fit(loader(), loader())
    assert balancer.calls == 1
    scale = 0.5 if update == "alternate" else 1.0
    assert trainer.step(*table(8)).weights == {"a": scale, "b": 2 * scale, "c": 3 * scale}


def counted_checks(monkeypatch: pytest.MonkeyPatch, model: sm.MultiTaskModel) -> Counter[str]:
    """Number of checks of labels, by task."""
    calls: Counter[str] = Counter()

    for task in model.tasks.values():

        def check(target: Tensor, task: sm.Task = task) -> None:
            calls[task.name] += 1
            type(task).check_labels(task, target)

        monkeypatch.setattr(task, "check_labels", check)
    return calls


@pytest.mark.parametrize("update", ["joint", "average", "alternate"])
def test_labels_are_checked_once_per_batch_in_training(monkeypatch: pytest.MonkeyPatch, update: Any) -> None:
    model = shared("abc")
    sharing = sm.DenseSharing(update=update)
    step = sm.TrainingStep(model, torch.optim.SGD(model.parameters(), 0.1), sharing.start(model), sharing=sharing)
    calls = counted_checks(monkeypatch, model)
    step(*table(8))
    assert calls == {"a": 1, "b": 1, "c": 1}


def test_labels_are_checked_once_per_batch_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared("abc")
    calls = counted_checks(monkeypatch, model)
    evaluate(Trained(model, dense_networks(model, model.tasks), model), loader(40, batch_size=8), CPU)
    assert calls == {"a": 5, "b": 5, "c": 5}


@pytest.mark.parametrize(("precision", "plain"), [("32-true", True), ("64-true", False), ("bf16-mixed", False)])
def test_a_wrapper_stands_before_the_model_only_where_it_changes_something(precision: Any, plain: bool) -> None:
    model = shared()
    trainer = quiet(model, precision=precision, epochs=1).fit(loader(), loader())
    assert (trainer.step.backend.module is model) == plain


@pytest.mark.parametrize("size", [3, 2**14, 2**15])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_wrong_entry_among_small_and_large_gradients_is_found(size: int, value: float) -> None:
    named = {name: torch.nn.Parameter(torch.zeros(n)) for name, n in (("other", 5), ("wrong", size), ("big", 2**15))}
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    check_gradient(named, ["a"])
    named["wrong"].grad[-1] = value  # type: ignore[index]
    with pytest.raises(NonFiniteError, match="task 'a' is NaN or infinite, in parameter 'wrong'"):
        check_gradient(named, ["a"])


def test_finite_gradients_whose_sum_overflows_are_right() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), torch.finfo(torch.float32).max)
    check_gradient({"w": parameter}, ["a"])
