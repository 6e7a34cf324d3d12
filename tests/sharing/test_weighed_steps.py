"""A proximal step weighs its term as the gradient step weighs the losses: one objective, whatever the balancer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from policies import Started
from sharing_toys import NAMES, batch_of, engine_of, loader, model, parameters_of, run_epoch, tasks
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS
from sparsemtl.sharing import SHARING, ProximalSharing, Sharing
from sparsemtl.sharing.sharing import StepWeights, Update
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.step import TrainingStep

RATE = 0.05
WEIGHTS = [0.5, 2.0, 1.5]
PROXIMAL = [name for name, kind in SHARING.items() if isinstance(kind, type) and issubclass(kind, ProximalSharing)]
#: name -> (configuration, the weight that it gives each task's loss)
CONSTANT: dict[str, tuple[dict[str, Any], list[float]]] = {
    "sum": ({}, [1.0, 1.0, 1.0]),
    "mean": ({}, [1 / 3, 1 / 3, 1 / 3]),
    "constant": ({"weights": WEIGHTS}, WEIGHTS),
}


def soft() -> sm.SoftMaskSharing:
    torch.manual_seed(3)
    return sm.SoftMaskSharing(lambda_=0.4, linear=True, init="uniform")


def sgd(rate: float = RATE) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def weighted(weights: Sequence[float]) -> sm.SharedBottom:
    """The toy with weights of the tasks' own."""
    return model(**dict(zip(NAMES, weights, strict=True)))


def state_of(engine: TrainingStep) -> dict[str, Tensor]:
    masks = {f"mask {i}": psi.detach().clone() for i, psi in enumerate(Started.of(engine).parameters())}
    return {**parameters_of(engine.model), **masks}


def assert_close(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-4, atol=1e-6, msg=name)


def lacking(group: Group, task: str) -> Group:
    return Group(group.x, group.targets, tuple(name for name in group.tasks if name != task))


# Soft masks: sum_t c_t w_t (L_t + lambda |psi_t|_1)


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("seeds", [[8], [8, 9]])
def test_masks_follow_the_weighted_sum_of_eq_4_and_5(name: str, seeds: list[int]) -> None:
    """Against autograd on the objective without l1, and l1's own step by hand."""
    options, weights = CONSTANT[name]
    engine = engine_of(model(), soft(), optimizer=sgd(), update="average", balancing=BALANCERS.build(name, **options))
    sharing: Any = Started.of(engine)
    groups = [batch_of(seed) for seed in seeds]
    before = {task: [psi.detach().clone() for psi in masks.values()] for task, masks in sharing.soft.items()}
    slopes = {}
    for task in NAMES:
        with sharing.view(task):
            loss = sum(
                engine.tasks[task].loss(engine.model(g.x, [task])[task], engine.tasks[task].labels(g.targets))
                for g in groups
            )
        slopes[task] = torch.autograd.grad(loss / len(groups), list(sharing.soft[task].values()))
    engine.step([[g] for g in groups])
    for task, weight in zip(NAMES, weights, strict=True):
        for psi, old, slope in zip(sharing.soft[task].values(), before[task], slopes[task], strict=True):
            expected = (old - RATE * weight * (slope + 0.4)).clamp(min=0)
            torch.testing.assert_close(psi.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", ["average", "alternate"])
def test_the_mean_is_the_sum_at_a_lower_rate(update: Update) -> None:
    ends = []
    for name, rate in (("sum", RATE), ("mean", RATE * (3 if update == "average" else 1))):
        engine = engine_of(model(), soft(), optimizer=sgd(rate), update=update, balancing=name)
        run_epoch(engine, loader(), 0)
        ends.append(state_of(engine))
    assert_close(*ends)


@pytest.mark.parametrize("update", ["average", "alternate"])
def test_constant_weights_are_weights_of_the_tasks_own(update: Update) -> None:
    ends = []
    ratio = sum(WEIGHTS) / 3 if update == "alternate" else 1.0  # where tasks take turns, only ratios matter
    for network, balancing, rate in (
        (model(), BALANCERS.build("constant", weights=WEIGHTS), RATE),
        (weighted(WEIGHTS), "sum", RATE / ratio),
    ):
        engine = engine_of(network, soft(), optimizer=sgd(rate), update=update, balancing=balancing)
        run_epoch(engine, loader(), 0)
        ends.append(state_of(engine))
    assert_close(*ends)


def test_masks_of_learned_weights_shrink_by_the_weight_of_the_step() -> None:
    engine = engine_of(model(), soft(), optimizer=sgd(), update="average", balancing="uncertainty")
    sharing: Any = Started.of(engine)
    before = {task: [psi.detach().clone() for psi in masks.values()] for task, masks in sharing.soft.items()}
    result = engine.step([[batch_of(8)]])
    for task in NAMES:
        for psi, old in zip(sharing.soft[task].values(), before[task], strict=True):
            expected = (old - RATE * (psi.grad + result.weights[task] * 0.4)).clamp(min=0)
            torch.testing.assert_close(psi.detach(), expected)


def test_a_task_in_one_of_two_accumulated_batches_shrinks_half_as_much() -> None:
    engine = engine_of(model(), soft(), optimizer=sgd(), update="average", balancing="sum")
    sharing: Any = Started.of(engine)
    before = {task: [psi.detach().clone() for psi in masks.values()] for task, masks in sharing.soft.items()}
    engine.step([[batch_of(8)], [lacking(batch_of(8), "side")]])
    for task, factor in (("kind", 1.0), ("side", 0.5)):
        for psi, old in zip(sharing.soft[task].values(), before[task], strict=True):
            torch.testing.assert_close(psi.detach(), (old - RATE * (psi.grad + factor * 0.4)).clamp(min=0))


def test_masks_may_have_a_learning_rate_of_their_own() -> None:
    torch.manual_seed(0)
    sharing = sm.SoftMaskSharing(lambda_=0.4, linear=True, mask_lr=0.5)
    groups: list[Any] = []

    def make(parameters: list[Any]) -> torch.optim.Optimizer:
        groups.extend(parameters)
        return torch.optim.SGD(parameters, lr=RATE)

    trainer = sm.Trainer(
        model(), sharing=sharing, optimizer=make, epochs=1, balancing="sum", progress=False, accelerator="cpu"
    )
    trainer.set_up(loader())
    masks = {id(psi) for psi in trainer.networks.parameters()}
    own = [group for group in trainer.optimizer.param_groups if {id(p) for p in group["params"]} == masks]
    assert [group["lr"] for group in own] == [0.5]
    assert {group["lr"] for group in trainer.optimizer.param_groups if group not in own} == {RATE}
    old = {
        task: [psi.detach().clone() for psi in soft.values()] for task, soft in Started.of(trainer.step).soft.items()
    }
    trainer.step.update = "average"
    trainer.step.step([[batch_of(8)]])
    for task in NAMES:
        for psi, before in zip(Started.of(trainer.step).soft[task].values(), old[task], strict=True):
            torch.testing.assert_close(psi.detach(), (before - 0.5 * (psi.grad + 0.4)).clamp(min=0))


# Penalties on no task's account: B(L_1, ..., L_T) + strength * penalty


class Blank(nn.Module):
    """A convolution that is in the graph, with a gradient of zero: what moves it is the penalty alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 24, 1, bias=False)
        self.out_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * self.layer(x[..., None, None]).flatten(1)


def shrunk(method: str, update: Update, balancing: str, *, rate: float = RATE, windows: int = 1) -> float:
    """How much of the penalised norm one round of steps takes away."""
    torch.manual_seed(0)
    network = sm.SharedBottom(Blank(), tasks())
    sharing: Sharing = SHARING.build(method, **{"lambda": 0.2})
    engine = engine_of(network, sharing, optimizer=sgd(rate), update=update, balancing=balancing)
    weight = network.encoder.layer.weight
    before = float(weight.detach().norm())
    engine.begin_epoch(0, loader())
    engine.step([[batch_of(8)]] * windows)
    return before - float(weight.detach().norm())


@pytest.mark.parametrize("method", PROXIMAL)
def test_a_round_of_turns_shrinks_as_much_as_its_losses_weigh(method: str) -> None:
    """In turns, weights of the losses are those of the sum: three times the mean's."""
    assert shrunk(method, "alternate", "sum") == pytest.approx(shrunk(method, "average", "sum"), rel=0.05)
    threefold = shrunk(method, "average", "mean", rate=3 * RATE)
    assert shrunk(method, "alternate", "mean") == pytest.approx(threefold, rel=0.05)


@pytest.mark.parametrize("method", PROXIMAL)
@pytest.mark.parametrize("update", ["joint", "average"])
def test_a_step_for_all_shrinks_by_rate_times_strength_whatever_balances(method: str, update: Update) -> None:
    expected = shrunk(method, update, "sum")
    assert expected > 0
    for balancing in ("mean", "uncertainty", "mgda"):
        assert shrunk(method, update, balancing) == pytest.approx(expected)
    assert shrunk(method, update, "sum", windows=3) == pytest.approx(expected)


@pytest.mark.parametrize("method", PROXIMAL)
@pytest.mark.parametrize("balancing", ["mean", "sum"])
def test_a_target_is_reached_in_turns_too(method: str, balancing: str) -> None:
    torch.manual_seed(0)
    network = sm.SharedBottom(Tiled(), tasks())
    sharing = SHARING.build(method, target_sparsity=0.5, reach_at=2, keep_min=1)
    engine = engine_of(network, sharing, optimizer=sgd(), update="alternate", balancing=balancing)
    for epoch in range(3):
        run_epoch(engine, loader(), epoch)
    sparsity = next(value for _, name, value in Started.of(engine).metrics() if name == "group_sparsity")
    assert sparsity == pytest.approx(0.5, abs=0.03)


class Tiled(nn.Module):
    """Takes a table row for a map, so that a convolution has something to read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(6, 24, 1)
        self.out_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x[..., None, None])).flatten(1)


def test_in_a_loop_of_ones_own_every_weight_is_one() -> None:
    assert StepWeights().of("any") == StepWeights().regularizer == 1.0
