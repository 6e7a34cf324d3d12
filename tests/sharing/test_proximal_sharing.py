"""Proximal sharing: the penalty alone decides what becomes zero, and a target is reached, on time, and held."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from loops import each
from policies import Started
from sharing_toys import NAMES, OPTIMIZERS, engine_of, loader, parameters_of, table, tasks, trained
from states import assert_same
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import ConfigError, MaskWarning, ParameterError
from sparsemtl.optim import GroupLasso, GroupMCP, Penalty, ProximalStep, group_sparsity
from sparsemtl.sharing import SHARING, ProximalSharing
from sparsemtl.training.steps.step import TrainingStep

METHODS = [name for name, kind in SHARING.items() if isinstance(kind, type) and issubclass(kind, ProximalSharing)]
every_method = each("method", METHODS)


class Tiled(nn.Module):
    """Takes a table row for a map, so that convolutions have something to read."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1), nn.ReLU())
        self.out_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[..., None, None].expand(-1, -1, 2, 2))


def network() -> sm.SharedBottom:
    torch.manual_seed(0)
    return sm.SharedBottom(Tiled(), tasks())


def weights(engine: TrainingStep) -> dict[str, Tensor]:
    return {name: p for name, p in engine.model.named_parameters() if p.ndim == 4}


def run(method: str, *, epochs: int = 3, optimizer: str = "adam", **options: Any) -> tuple[TrainingStep, list[float]]:
    """An engine after some epochs, and the sparsity after each."""
    return run_with(SHARING.build(method, **options), epochs=epochs, optimizer=optimizer)


def run_with(sharing: Any, *, epochs: int = 3, optimizer: str = "adam") -> tuple[TrainingStep, list[float]]:
    engine = engine_of(network(), sharing, optimizer=optimizer)
    data, found = loader(48), []
    for epoch in range(epochs):
        Started.of(engine).begin_epoch(epoch, data)
        for x, targets in data:
            engine.step([[sm_group(x, targets)]])
        found.append(next(value for _, name, value in Started.of(engine).metrics() if name == "group_sparsity"))
    return engine, found


def sm_group(x: Tensor, targets: dict[str, Tensor]) -> Any:
    from sparsemtl.tasks.batches import Group

    return Group(x, targets, NAMES)


@every_method
def test_without_a_penalty_it_is_dense_training_bit_for_bit(method: str) -> None:
    sharing = SHARING.build(method, **{"lambda": 0.0})
    sparse = trained(sharing, loader(), network=network())
    dense = trained(sm.DenseSharing(), loader(), network=network())
    assert_same(parameters_of(sparse.model), parameters_of(dense.model))


def test_a_step_is_the_optimizers_step_and_then_the_proximal_one() -> None:
    engine = engine_of(network(), sm.GroupLassoSharing(lambda_=0.01, keep_min=2), optimizer="adamw")
    plain = network()
    optimizer, shrink = OPTIMIZERS["adamw"](plain.parameters()), ProximalStep(GroupLasso(strength=0.01, keep_min=2))
    x, targets = table(8)
    engine.begin_epoch(0, loader())
    for _ in range(5):
        engine.step([[sm_group(x, targets)]])
        optimizer.zero_grad()
        outputs = plain(x)
        sum(task.loss(outputs[name], targets) * (1 / 3) for name, task in plain.tasks.items()).backward()
        optimizer.step()
        shrink(optimizer, [p for name, p in plain.encoder.named_parameters() if p.ndim == 4])
    assert group_sparsity(weights(engine)) > 0
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dict(engine.model.named_parameters())[name], parameter, rtol=1e-4, atol=1e-6)


@every_method
def test_a_penalty_in_the_loss_acts_on_the_gradient_and_on_no_task(method: str) -> None:
    """The step is that of the losses' gradient plus the penalty's, found apart, whatever the balancer weighs."""
    options = {"lambda": 0.3, "keep_min": 1}
    engine = engine_of(network(), SHARING.build(method, **options, penalty_in_loss=True), optimizer="sgd")
    plain = engine_of(network(), SHARING.build(method, **options), optimizer="sgd")
    x, targets = table(8)
    seen: list[Tensor] = []
    engine.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in covered(engine)))
    plain.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in covered(plain)))
    penalty = plain.sharing.shrink.penalty.value(weights(plain))
    terms = torch.autograd.grad(penalty, covered(plain))
    for one in (engine, plain):
        one.begin_epoch(0, loader())
        one.step([[sm_group(x, targets)]])
    with_it, without = seen[: len(terms)], seen[len(terms) :]
    for found, bare, term in zip(with_it, without, terms, strict=True):
        assert term.abs().sum() > 0
        torch.testing.assert_close(found, bare + term)


def covered(engine: TrainingStep) -> list[Any]:
    return list(weights(engine).values())


@every_method
def test_more_penalty_leaves_less(method: str) -> None:
    ends = [run(method, keep_min=1, **{"lambda": strength})[1][-1] for strength in (1e-5, 1e-3, 1e-1)]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


@each(
    ("method", "optimizer", "target"),
    [
        (method, optimizer, (0.3, 0.5, 0.8)[(row + column) % 3])  # each pair of two values once
        for row, method in enumerate(METHODS)
        for column, optimizer in enumerate(["adam", "adamw", "sgd"])
    ],
)
def test_a_target_is_reached_by_the_epoch_asked_for_and_held(method: str, optimizer: str, target: float) -> None:
    _, found = run(method, epochs=7, optimizer=optimizer, target_sparsity=target, reach_at=4, keep_min=1)
    assert all(abs(sparsity - target) <= 0.02 for sparsity in found[3:]), found
    assert found[0] < target - 0.02
    assert all(before <= after + 0.02 for before, after in pairwise(found))


@every_method
def test_the_target_is_reached_on_the_way_that_is_documented(method: str) -> None:
    sharing = SHARING.build(method, target_sparsity=0.6, reach_at=3, warmup=1)
    engine, found = run_with(sharing)
    assert found[0] == 0
    assert found[1] == pytest.approx(0.6 * (1 - 0.5**3), abs=0.02)
    assert found[2] == pytest.approx(0.6, abs=0.02)
    assert isinstance(engine.sharing, ProximalSharing)
    assert not [epoch for epoch in range(3) if sharing.is_selectable(epoch)]
    assert sharing.is_selectable(3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("penalty", [GroupLasso(strength=1.0, keep_min=1), GroupMCP(strength=1.0, keep_min=1)])
def test_the_critical_strength_of_a_group_is_where_it_dies(penalty: Penalty, optimizer: str) -> None:
    engine = engine_of(network(), sm.DenseSharing(), optimizer=optimizer)
    x, targets = table(8)
    engine.step([[sm_group(x, targets)]])
    own = weights(engine)
    critical = ProximalStep(penalty).critical_strength(engine.optimizer, own)
    before = {name: p.detach().clone() for name, p in own.items()}
    mortal = critical[critical.isfinite()]
    assert len(mortal) == len(critical) - 2
    for strength in mortal.quantile(torch.tensor([0.13, 0.52, 0.91], dtype=torch.double)).tolist():
        ProximalStep(replace(penalty, strength=strength))(engine.optimizer, own)
        assert round(group_sparsity(own) * len(critical)) == int((mortal <= strength).sum())
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(before[name])


def test_the_summary_says_what_is_left_of_every_layer() -> None:
    engine, found = run("group-lasso", epochs=5, target_sparsity=0.5, reach_at=3)
    outcome = Started.of(engine).summary()
    assert outcome["granularity"] == "input-channel"
    assert outcome["group_sparsity"] == found[-1]
    assert {name: layer["all"] for name, layer in outcome["groups"].items()} == {
        "encoder.layers.0.weight": 6,
        "encoder.layers.2.weight": 24,
    }
    for name, layer in outcome["groups"].items():
        kept = weights(engine)[name].detach().abs().sum((0, 2, 3)) > 0
        assert layer["left"] == int(kept.sum())


@each(
    ("options", "message"),
    [
        ({"target_sparsity": 0.5}, "`target_sparsity` and `reach_at` go together"),
        ({"reach_at": 3}, "`target_sparsity` and `reach_at` go together"),
        ({"target_sparsity": 0.5, "reach_at": 2, "warmup": 2}, "after the warm-up of 2 epochs, got 2"),
        ({"target_sparsity": 1.0, "reach_at": 2}, "'target_sparsity' parameter"),
        ({"lambda": -1.0}, "'lambda_' parameter of .* must be a float in"),
    ],
)
@every_method
def test_what_cannot_be_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SHARING.build(method, **options)


@every_method
def test_lambda_is_called_lambda_in_configurations(method: str) -> None:
    from sparsemtl.runs.config import check

    complete = check({"sharing": {"name": method, "lambda": 0.25}})
    assert complete["sharing"]["lambda"] == 0.25
    with pytest.raises(ConfigError, match="lambda_"):
        check({"sharing": {"name": method, "lambda_": 0.25}})


def test_a_model_without_convolutions_is_told_of_linear_layers() -> None:
    with pytest.raises(ParameterError, match=r"GroupLassoSharing finds nothing to make sparse.*`linear=True`"):
        sm.GroupLassoSharing().start(sm.SharedBottom(nn.Linear(2, 3), tasks()))


def fitted(sharing: Any, optimizer: Any, epochs: int = 1) -> sm.Trainer:
    trainer = sm.Trainer(network(), sharing=sharing, optimizer=optimizer, epochs=epochs, progress=False)
    return trainer.fit(loader(), loader())


@every_method
def test_a_strength_that_zeroes_nothing_is_told_at_the_end(method: str) -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01)

    with pytest.warns(MaskWarning, match=r"none is zero in the selected model.*`target_sparsity` and `reach_at`"):
        fitted(SHARING.build(method, **{"lambda": 1e-7}), sgd)


@every_method
@each("options", [{"lambda": 0.0}, {"target_sparsity": 0.3, "reach_at": 1}])
def test_what_is_dense_on_purpose_or_sparse_is_not_warned_of(method: str, options: dict[str, Any]) -> None:
    fitted(SHARING.build(method, **options, keep_min=1), "adam", epochs=2)


def test_a_target_that_empties_a_layer_is_not_answered_with_a_strength() -> None:
    sharing = sm.GroupLassoSharing(target_sparsity=0.95, reach_at=1)
    with pytest.warns(MaskWarning, match=r"Lower `target_sparsity` \(0\.95\), or keep some with keep_min=1") as caught:
        run_with(sharing)
    assert not any("strength" in str(warning.message) for warning in caught)
