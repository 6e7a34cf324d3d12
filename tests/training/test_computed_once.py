"""What a run computes once: checks of labels, constant weights, results of the best epoch, metrics; no idle wrapper."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor
from training_toys import apart, loader, quiet, shared, table

import sparsemtl as sm
import sparsemtl.training.trainer
from sparsemtl.balancing import Balancer
from sparsemtl.errors import CheckpointError, NonFiniteError
from sparsemtl.networks.task_networks import dense_networks
from sparsemtl.training.evaluation.evaluate import evaluate
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.evaluation.selection import Selection
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.steps.finite import check_gradient

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


@pytest.mark.parametrize("model", [shared("abc", norm=True), apart()])
def test_the_best_epoch_is_evaluated_once(monkeypatch: pytest.MonkeyPatch, model: sm.MultiTaskModel) -> None:
    calls = 0

    def counted(*arguments: Any) -> Results:
        nonlocal calls
        calls += 1
        return evaluate(*arguments)

    monkeypatch.setattr(sparsemtl.training.trainer, "evaluate", counted)
    held_out = loader(40, batch_size=8, shuffle=False)
    trainer = quiet(model, epochs=3, optimizer=partial(torch.optim.Adam, lr=0.1)).fit(loader(), held_out)
    assert calls == 3
    assert trainer.validation == evaluate(Trained(model, trainer.networks, model), held_out, CPU)


def test_results_of_the_best_epoch_outlive_a_checkpoint_and_older_ones_are_evaluated_anew(tmp_path: Path) -> None:
    held_out = loader(40, batch_size=8, shuffle=False)
    trainer = quiet(epochs=2, folder=tmp_path).fit(loader(), held_out)
    state = trainer.selection.state_dict()
    copied = Selection(trainer.model)
    copied.load_state_dict(state)
    assert copied.results == trainer.validation
    copied.load_state_dict({name: value for name, value in state.items() if name != "results"})
    assert copied.results == {}
    with pytest.raises(CheckpointError, match=r"selection\.results\.a"):
        copied.load_state_dict({**state, "results": {"a": {"loss": "low"}}})


def test_the_primary_metric_is_that_of_the_task_as_it_is_now() -> None:
    task = sm.Regression("t")
    assert (metric_facts(task).primary, metric_facts(task).origin) == ("r2", 1.0)
    task.primary = "mae"
    assert (metric_facts(task).primary, metric_facts(task).origin) == ("mae", 0.0)


@pytest.mark.parametrize(("precision", "plain"), [("32-true", True), ("64-true", False), ("bf16-mixed", False)])
def test_a_wrapper_stands_before_the_model_only_where_it_changes_something(precision: Any, plain: bool) -> None:
    model = shared()
    trainer = quiet(model, precision=precision, epochs=1).fit(loader(), loader())
    assert (trainer.step.backend.module is model) == plain


@each("size", [3, 2**14, 2**15])
@each("value", [float("nan"), float("inf"), -float("inf")])
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
