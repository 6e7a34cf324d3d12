"""One contract for every balancer, then what is particular to some."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torchjd.aggregation as aggregation
import torchjd.scalarization as scalarization
from loops import each
from members import is_installed, made_balancer
from policies import Started
from states import state_of
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.balancing import BALANCERS, Balancer, GradientBalancer, LossBalancer, as_balancer
from sparsemtl.balancing.targets import Representation
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.registry.parameters import parameters_of
from sparsemtl.sharing.sharing import Update
from sparsemtl.storage.files import read_tree, write_tree
from sparsemtl.tasks.batches import Group
from sparsemtl.training.steps.step import TrainingStep

CPU = torch.device("cpu")
LEARNED_SCALES = {"uncertainty": 0.5, "imtl-l": 1.0}
"""Balancers that learn the scale of a loss, a single one too -> the scale that they start with."""


@contextmanager
def case(*names: object) -> Iterator[None]:
    """Names the case of a loop in which a test fails."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        raise AssertionError(f"case {', '.join(map(repr, names))}: {error}") from error


def module_of(balancer: Any) -> Any:
    """The TorchJD module inside."""
    return balancer.module


def attached(name: str, count: int) -> Balancer:
    balancer = made_balancer(name, count)
    balancer.attach(count, CPU)
    return balancer


NAMES = [name for name in BALANCERS if is_installed(name)]
GRADIENT_BALANCERS = [name for name in NAMES if made_balancer(name, 2).combines_gradients]
FIXED = ["krum", "trimmed-mean", "constant-gradients", "mean-gradients", "sum-gradients"]
"""Balancers with a fixed number of rows, or for which a row of zeros is neutral."""
NOT_ALONE = ["krum", "fairgrad"]
"""Needs three tasks; scales a single gradient, too."""
UPDATES: list[Update] = ["joint", "average"]
APPLIES: list[Any] = ["weights", "gradients"]
LOSS_BALANCERS = [name for name in NAMES if name not in GRADIENT_BALANCERS]
READERS = [name for name in NAMES if type(made_balancer(name, 2)).gradient_target is not Balancer.gradient_target]
"""Balancers that read gradients at a target and weigh the losses."""


def model_of(names: str = "ab") -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    encoder.out_features = 6  # type: ignore[assignment]
    kinds: dict[str, sm.Task] = {"a": sm.Classification("a", 3), "b": sm.Regression("b"), "c": sm.MultiLabel("c", 2)}
    return sm.SharedBottom(encoder, [kinds[name] for name in names]).double()


def updates_of(name: str) -> list[Update]:
    """The updates with which a balancer works: all, unless it reads gradients at one representation of all tasks."""
    at = made_balancer(name, 3).gradient_target(model_of("abc"))
    return ["joint"] if isinstance(at, Representation) else UPDATES


BY_UPDATE = [(name, update) for name in NAMES for update in updates_of(name)]
PER_TASK = [name for name, update in BY_UPDATE if update == "average"]
"""Balancers of tasks with networks of their own."""


def batch_of(names: str = "ab", seed: int = 0, *, missing: str = "") -> list[Group]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = {"a": x[:, :3].argmax(1), "b": x[:, 0] + 1, "c": (x[:, :2] > 0).double()}
    gone = {"a": -100, "b": math.nan, "c": math.nan}
    return [
        Group(x, {t: torch.full_like(targets[t], gone[t]) if t in missing else targets[t] for t in names}, (*names,))
    ]


def engine_of(
    model: sm.MultiTaskModel, balancer: Balancer, update: Update = "joint", sharing: sm.Sharing | None = None
) -> TrainingStep:
    method = sharing or sm.DenseSharing()
    balancer.attach(len(model.tasks), CPU)
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.05, momentum=0.9)
    networks = method.start(model)
    return TrainingStep(model, optimizer, networks, sharing=method, balancing=balancer, update=update)


def shared_gradient(model: sm.MultiTaskModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.shared_parameters().values() if p.grad is not None])


def rows_of(model: sm.MultiTaskModel, group: Group, names: Sequence[str]) -> Tensor:
    """The tasks' shared gradients, one row each, by autograd alone."""
    rows = []
    for name in names:
        loss = model.tasks[name].loss(model(group.x)[name], group.targets[name])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.shared_parameters().values()])]))
    return torch.stack(rows)


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


# The contract


def test_with_one_task_it_is_plain_training() -> None:
    for name in NAMES:
        if name in NOT_ALONE:
            continue
        with case(name):
            model, plain = model_of("a"), model_of("a")
            engine, reference = engine_of(model, made_balancer(name, 1)), engine_of(plain, made_balancer("sum", 1))
            scale = LEARNED_SCALES.get(name)
            for seed in range(1 if scale else 4):
                engine.step([batch_of("a", seed)])
                reference.step([batch_of("a", seed)])
            for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, expected.grad * (scale or 1.0), rtol=1e-5, atol=1e-9)


def test_weights_are_one_finite_number_a_task() -> None:
    for name in NAMES:
        with case(name):
            weights = attached(name, 3).weights(torch.tensor([0.5, 2.0, 1.0]))
            assert weights.shape == (3,)
            assert bool(weights.isfinite().all())
            assert not weights.requires_grad


@each("name", [name for name in LOSS_BALANCERS if name not in ("famo", *READERS)])
def test_weights_are_the_slopes_of_the_combined_loss(name: str) -> None:
    losses, nudges = torch.tensor([0.5, 2.0, 1.0]), torch.eye(3) * 0.01

    def combined(at: Tensor) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return module_of(attached(name, 3))(at)

    torch.manual_seed(0)
    weights = attached(name, 3).weights(losses)
    slopes = torch.stack([combined(losses + nudge) - combined(losses - nudge) for nudge in nudges]) / 0.02
    torch.testing.assert_close(weights, slopes, rtol=1e-2, atol=1e-3)


def test_famo_weights_each_loss_by_its_inverse() -> None:
    losses = torch.tensor([0.5, 2.0, 1.0])
    weights = attached("famo", 3).weights(losses)
    assert float(weights.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(weights * losses, (weights * losses).mean().expand(3))


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, copied = model_of("abc"), model_of("abc")
    engine = engine_of(model, made_balancer(name, 3))
    train(engine, range(3))
    engine.balancer.end_epoch()
    train(engine, range(3, 6))
    engine.balancer.end_epoch()
    train(engine, range(6, 8))
    write_tree(tmp_path / "state", [engine.balancer.state_dict(), engine.state_dict(), engine.optimizer.state_dict()])
    copied.load_state_dict(model.state_dict())
    other = engine_of(copied, made_balancer(name, 3))
    balancer, own, optimizer = read_tree(tmp_path / "state")
    other.balancer.load_state_dict(balancer)
    other.load_state_dict(own)
    other.optimizer.load_state_dict(optimizer)
    for one in (engine, other):
        torch.manual_seed(9)
        train(one, range(8, 10))
        one.balancer.end_epoch()
        train(one, range(10, 12))
    assert_equal(state_of(model), state_of(copied))


def train(engine: TrainingStep, seeds: range) -> None:
    for seed in seeds:
        engine.step([batch_of("".join(engine.tasks), seed)])


def test_a_state_is_a_copy() -> None:
    for name in NAMES:
        with case(name):
            engine = engine_of(model_of("abc"), made_balancer(name, 3))
            train(engine, range(3))
            state = engine.balancer.state_dict()
            texts = repr(state)
            train(engine, range(3, 6))
            assert repr(state) == texts


def test_a_task_missing_in_a_batch_disturbs_nobody() -> None:
    for name, update in BY_UPDATE:
        model = model_of("abc")
        engine = engine_of(model, made_balancer(name, 3), update)
        engine.step([batch_of("abc")])
        for seed, missing in enumerate(["a", "b", "ac"], 1):
            with case(name, update, missing):
                before = state_of(model)
                result = engine.step([batch_of("abc", seed, missing=missing)])
                assert set(result.losses) == set("abc") - set(missing)
                for key, tensor in model.state_dict().items():
                    assert bool(tensor.isfinite().all())
                    if key.split(".")[1] in missing:
                        assert torch.equal(tensor, before[key])
        engine.step([batch_of("abc", 4)])


def test_masks_of_ones_change_nothing() -> None:
    for name in PER_TASK:
        with case(name):
            states = []
            for sharing in (
                sm.DenseSharing(),
                sm.RandomSharing(keep=1.0),
                sm.RandomSharing(keep=1.0, mask_applies_to="gradients"),
            ):
                model = model_of("abc")
                engine = engine_of(model, made_balancer(name, 3), "average", sharing)
                Started.of(engine).begin_epoch(0, ())
                torch.manual_seed(4)
                train(engine, range(3))
                states.append(state_of(model))
            assert_equal(states[0], states[1])
            assert_equal(states[0], states[2])


def test_masked_rows_from_passes_of_their_own_are_combined() -> None:
    for name, mask_applies_to in product(PER_TASK, APPLIES):
        with case(name, mask_applies_to):
            model = model_of("abc")
            sharing = sm.RandomSharing(keep=0.4, mask_applies_to=mask_applies_to, seed=2)
            engine = engine_of(model, made_balancer(name, 3), "average", sharing)
            Started.of(engine).begin_epoch(0, ())
            before = state_of(model)
            torch.manual_seed(4)
            train(engine, range(2))
            union = engine.networks.masks.union()
            for key, mask in union.items():
                still = model.state_dict()[key] == before[key]
                assert bool(still[~mask].all())
                assert not bool(still.all())


def test_it_begins_anew_for_a_new_run() -> None:
    for name in NAMES:
        with case(name):
            balancer = made_balancer(name, 3)
            weights = []
            for _ in range(2):
                balancer.attach(3, CPU)
                torch.manual_seed(0)
                weights.append(balancer.weights(torch.tensor([0.5, 2.0, 1.0])))
                balancer.weights(torch.tensor([0.1, 3.0, 1.5]))
                balancer.end_epoch()
            assert torch.equal(weights[0], weights[1])


def test_attaching_takes_everything_to_the_device() -> None:
    for name in NAMES:
        with case(name):
            balancer = made_balancer(name, 3)
            balancer.attach(3, torch.device("meta"))
            module = getattr(balancer, "module", nn.Module())
            for part in (balancer, *module.modules()):
                for key, value in {
                    **vars(part),
                    **vars(part).get("_parameters", {}),
                    **vars(part).get("_buffers", {}),
                }.items():
                    assert not isinstance(value, Tensor) or value.device.type == "meta", key


def test_every_member_says_what_it_is_and_has_checked_parameters() -> None:
    for name in NAMES:
        with case(name):
            assert BALANCERS.summary(name).endswith(".")
            for parameter in parameters_of(BALANCERS[name]).values():
                assert parameter.hint is not Any, parameter


def test_a_balancer_must_be_attached_first() -> None:
    with pytest.raises(RuntimeError, match=r"not attached yet; call attach\(tasks, device\)"):
        BALANCERS.build("mean").weights(torch.ones(2))


ORIGINALS: dict[str, tuple[dict[str, Any], Any]] = {
    "uncertainty": ({}, lambda: scalarization.UW(3)),
    "dwa": ({}, lambda: scalarization.DWA(2.0)),
    "random": ({}, scalarization.Random),
    "geometric-mean": ({}, scalarization.GeometricMean),
    "imtl-l": ({}, lambda: scalarization.IMTLL(3)),
    "stch": ({}, lambda: scalarization.STCH(1.0)),
    "cosmos": ({}, lambda: scalarization.COSMOS(1.0, torch.ones(3))),
    "pbi": ({}, lambda: scalarization.PBI(5.0, torch.ones(3))),
    "famo": ({}, lambda: scalarization.FAMO(3)),
    "pcgrad": ({}, aggregation.PCGrad),
    "gradvac": ({}, lambda: aggregation.GradVac(0.5)),
    "graddrop": ({}, aggregation.GradDrop),
    "imtl-g": ({}, aggregation.IMTLG),
    "aligned-mtl": ({}, aggregation.AlignedMTL),
    "config": ({}, aggregation.ConFIG),
    "random-gradients": ({}, aggregation.Random),
    "mean-gradients": ({}, aggregation.Mean),
    "sum-gradients": ({}, aggregation.Sum),
    "constant-gradients": ({"weights": [1.0, 2.0, 3.0]}, lambda: aggregation.Constant(torch.arange(1.0, 4.0))),
    "excess-mtl": ({}, aggregation.ExcessMTL),
    "fairgrad": ({"alpha": 0.5}, lambda: aggregation.FairGrad(0.5)),
    "krum": ({"n_byzantine": 0}, lambda: aggregation.Krum(0)),
    "pcd": ({}, aggregation.PCD),
    "trimmed-mean": ({"trim_number": 1}, lambda: aggregation.TrimmedMean(1)),
    "upgrad": ({}, lambda: aggregation.UPGrad()),
    "dualproj": ({}, lambda: aggregation.DualProj()),
}
SET = {
    "dwa, set": ({"temperature": 0.7}, lambda: scalarization.DWA(0.7)),
    "stch, set": ({"mu": 0.3, "weights": [1.0, 2.0, 3.0]}, lambda: scalarization.STCH(0.3, torch.arange(1.0, 4.0))),
    "cosmos, set": (
        {"alignment": 4.0, "weights": [1.0, 2.0, 3.0]},
        lambda: scalarization.COSMOS(4, torch.arange(1.0, 4)),
    ),
    "pbi, set": ({"theta": 1.5, "weights": [1.0, 2.0, 3.0]}, lambda: scalarization.PBI(1.5, torch.arange(1.0, 4.0))),
    "famo, set": ({"lr": 0.5, "weight_decay": 0.1}, lambda: scalarization.FAMO(3, lr=0.5, weight_decay=0.1)),
    "gradvac, set": ({"beta": 0.9}, lambda: aggregation.GradVac(0.9)),
    "aligned-mtl, set": (
        {"pref_vector": [1.0, 2.0, 3.0], "scale_mode": "rmse"},
        lambda: aggregation.AlignedMTL(torch.arange(1.0, 4.0), "rmse"),
    ),
    "graddrop, set": ({"leak": [0.1, 0.2, 0.3]}, lambda: aggregation.GradDrop(leak=torch.tensor([0.1, 0.2, 0.3]))),
    "pcd, set": ({"tau": [0.1, 0.3]}, lambda: aggregation.PCD(torch.tensor([0.1, 0.3]))),
    "excess-mtl, set": ({"n_warmup_steps": 2}, lambda: aggregation.ExcessMTL(n_warmup_steps=2)),
    "famo, minima": (
        {"min_losses": [0.0, 0.01, 0.02]},
        lambda: scalarization.FAMO(3, torch.tensor([0.0, 0.01, 0.02])),
    ),
    "pbi, reference": (
        {"reference": [0.1, 0.0, 0.2]},
        lambda: scalarization.PBI(5.0, torch.ones(3), torch.tensor([0.1, 0.0, 0.2])),
    ),
    "stch, reference": (
        {"reference": [0.1, 0.0, 0.2]},
        lambda: scalarization.STCH(1.0, None, torch.tensor([0.1, 0.0, 0.2])),
    ),
    "cr-mogm": (
        {"weighting": "pcgrad", "alpha": 0.5},
        lambda: aggregation.GramianWeightedAggregator(aggregation.CRMOGMWeighting(aggregation.PCGradWeighting(), 0.5)),
    ),
}


@pytest.mark.parametrize("name", [*ORIGINALS, *SET])
def test_a_member_is_the_one_of_its_name_in_torchjd(name: str) -> None:
    """Two epochs of three steps, and what is combined after them."""
    parameters, original = {**ORIGINALS, **SET}[name]
    if not is_installed(own := name.partition(",")[0]):
        pytest.skip("its solver is not installed")
    ours, theirs = BALANCERS.build(own, **parameters), as_balancer(original())
    found = []
    for balancer in (ours, theirs):
        balancer.attach(3, CPU)
        torch.manual_seed(0)
        combined = []
        for step, losses in enumerate(torch.rand(9, 3) + 0.1):
            combined.append(balancer.weights(losses))
            if balancer.combines_gradients:
                combined.append(balancer.aggregate(torch.randn(3, 5)))
            if balancer.needs_post_step_losses:
                balancer.observe_post_step_losses(losses * torch.tensor([0.5, 0.9, 0.7]))
            if step % 3 == 2:
                balancer.end_epoch()
        found.append(combined)
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_every_member_of_torchjds_is_compared() -> None:
    solved = {"mgda", "cagrad", "nash-mtl"}  # compared in test_solvers.py
    assert set(BALANCERS) == {*ORIGINALS, "mean", "sum", "constant", "cr-mogm", *solved, *READERS}
    for package, base in ((aggregation, aggregation.Aggregator), (scalarization, scalarization.Scalarizer)):
        kinds = [name for name in package.__all__ if issubclass(getattr(package, name), base)]
        bases = {"Aggregator", "Scalarizer", "WeightedAggregator", "GramianWeightedAggregator"}
        assert [name for name in kinds if name.lower() not in BALANCERS and name not in bases] == []


# Loss weights


def test_the_mean_and_the_sum_differ_by_the_number_of_tasks() -> None:
    losses = torch.tensor([0.5, 2.0, 1.0, 4.0])
    assert torch.equal(attached("sum", 4).weights(losses), torch.ones(4))
    assert torch.equal(attached("mean", 4).weights(losses), torch.full((4,), 0.25))


def test_constant_weights_are_taken_in_the_tasks_order() -> None:
    balancer = BALANCERS.build("constant", weights=[1.0, 3.0])
    balancer.attach(2, CPU)
    assert balancer.weights(torch.tensor([5.0, 7.0])).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("name", ["constant", "stch", "cosmos", "pbi"])
def test_a_weight_too_few_is_an_error(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name}: 3 tasks need 3 weights, got 2"):
        BALANCERS.build(name, weights=[1.0, 2.0]).attach(3, CPU)


def uncertainty(*, s: Sequence[float]) -> LossBalancer:
    """Uncertainty weighting with these log-variances."""
    balancer = attached("uncertainty", len(s))
    assert isinstance(balancer, LossBalancer)
    with torch.no_grad():
        balancer.module.log_var.copy_(torch.tensor(s))
    return balancer


def test_uncertainty_starts_as_half_the_sum() -> None:
    losses = torch.tensor([0.5, 2.0, 3.0])
    balancer = attached("uncertainty", 3)
    assert float(module_of(balancer)(losses).detach()) == pytest.approx(0.5 * 5.5)
    assert torch.equal(balancer.weights(losses), torch.full((3,), 0.5))


@pytest.mark.parametrize("s", [[0.0, 0.0], [-1.0, 2.0]])
def test_uncertainty_has_the_slopes_of_its_formula(s: list[float]) -> None:
    losses, log_variance = torch.tensor([0.5, 2.0]), torch.tensor(s)
    balancer = uncertainty(s=s)
    torch.testing.assert_close(balancer.weights(losses), 0.5 * torch.exp(-log_variance))
    (parameter,) = balancer.parameters()
    torch.testing.assert_close(parameter.grad, 0.5 * (1 - torch.exp(-log_variance) * losses))


def test_for_constant_losses_uncertainty_ends_at_their_logarithm() -> None:
    losses = torch.tensor([0.2, 1.0, 5.0])
    balancer = attached("uncertainty", 3)
    (parameter,) = balancer.parameters()
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        balancer.weights(losses)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), losses.log(), rtol=1e-4, atol=1e-5)
    best = float(module_of(balancer)(losses).detach())
    assert best == pytest.approx(float((0.5 * (1 + losses.log())).sum()), rel=1e-5)


def test_only_what_has_parameters_to_train_gives_them_to_the_optimizer() -> None:
    for name in NAMES:
        with case(name):
            assert len(list(attached(name, 3).parameters())) == (1 if name in LEARNED_SCALES else 0)


@pytest.mark.parametrize("name", LEARNED_SCALES)
def test_learned_scales_are_trained_without_decay(name: str) -> None:
    groups: list[Any] = []

    def decaying(parameters: list[Any]) -> torch.optim.Optimizer:
        groups.append(torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5))
        return groups[-1]

    x, targets = torch.randn(16, 4), {"a": torch.arange(16) % 3, "b": torch.randn(16)}
    trainer = sm.Trainer(
        model_of().float(), balancing=name, optimizer=decaying, epochs=1, accelerator="cpu", progress=False
    )
    trainer.fit([(x, targets)], [(x, targets)])
    network, scales = groups[0].param_groups
    (parameter,) = trainer.balancer.parameters()
    assert network["weight_decay"] == 0.5
    assert scales["weight_decay"] == 0.0
    assert [id(p) for p in scales["params"]] == [id(parameter)]
    assert all(p is not parameter for p in network["params"])
    torch.testing.assert_close(parameter.detach(), -0.1 * parameter.grad)


def test_random_weights_are_positive_and_sum_to_one() -> None:
    torch.manual_seed(0)
    balancer = attached("random", 5)
    for _ in range(20):
        weights = balancer.weights(torch.rand(5))
        assert bool((weights > 0).all())
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)


def test_random_weights_are_reproducible_and_differ_from_step_to_step() -> None:
    balancer, losses = attached("random", 4), torch.rand(4)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([balancer.weights(losses) for _ in range(3)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1)[0], drawn(1)[1])


def test_random_weights_are_one_over_the_number_of_tasks_on_average() -> None:
    torch.manual_seed(0)
    balancer, losses = attached("random", 3), torch.ones(3)
    drawn = torch.stack([balancer.weights(losses) for _ in range(3_000)])
    assert float((drawn.mean(0) - 1 / 3).abs().max()) < 0.01


def test_dwa_weighs_a_loss_that_falls_slowly_more_from_the_third_epoch_on() -> None:
    balancer = attached("dwa", 2)
    for losses in ([2.0, 2.0], [1.0, 1.8]):
        assert torch.equal(balancer.weights(torch.tensor(losses)), torch.ones(2))
        balancer.end_epoch()
    rates = torch.tensor([1.0 / 2.0, 1.8 / 2.0])
    expected = 2 * torch.softmax(rates / 2.0, 0)
    torch.testing.assert_close(balancer.weights(torch.tensor([0.5, 1.7])), expected)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_the_geometric_mean_does_not_care_for_the_scale_of_a_loss(factor: float) -> None:
    losses, scaled = torch.tensor([0.5, 2.0]), torch.tensor([0.5, 2.0 * factor])
    one, other = (attached("geometric-mean", 2).weights(row) * row for row in (losses, scaled))
    torch.testing.assert_close(other / other.sum(), one / one.sum())


# FAMO, which looks back


def famo_weights(engine: TrainingStep) -> Tensor:
    return module_of(engine.balancer)._w.detach().clone()


def test_famo_turns_to_the_loss_that_fell_less() -> None:
    balancer = attached("famo", 2)
    balancer.weights(torch.tensor([1.0, 1.0]))
    balancer.observe_post_step_losses(torch.tensor([0.5, 0.9]))
    first, second = module_of(balancer)._w.tolist()
    assert second > first


def test_famo_sees_the_losses_of_the_same_batch_before_and_after_the_step() -> None:
    model = model_of("ab")
    engine = engine_of(model, made_balancer("famo", 2))
    seen: list[Tensor] = []
    update = module_of(engine.balancer).update
    module_of(engine.balancer).update = lambda losses: (seen.append(losses), update(losses))
    group = batch_of("ab")[0]
    engine.step([[group]])
    with torch.no_grad():
        outputs = model(group.x)
        expected = [float(model.tasks[t].loss(outputs[t], group.targets[t])) for t in "ab"]
    assert seen[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_famo_takes_a_task_without_a_label_for_one_whose_loss_stayed() -> None:
    torch.manual_seed(0)
    engine = engine_of(model_of("abc"), made_balancer("famo", 3))
    train(engine, range(3))
    seen: list[Tensor] = []
    module_of(engine.balancer).update = seen.append
    engine.step([batch_of("abc", 3, missing="b")])
    before = module_of(engine.balancer)._prev_losses
    assert seen[0][1] == before[1]
    assert seen[0][0] != before[0]


def test_famo_sees_penalties_on_both_sides_of_the_step() -> None:
    class Charged(sm.DenseSharing):
        def penalty(self, model: Any, networks: Any, task: str) -> Tensor:
            return torch.tensor(3.0)

    engine = engine_of(model_of("ab"), made_balancer("famo", 2), sharing=Charged())
    seen: list[Tensor] = []
    module_of(engine.balancer).update = seen.append
    result = engine.step([batch_of("ab")])
    assert bool((seen[0] > 3.0).all())
    assert module_of(engine.balancer)._prev_losses.tolist() == pytest.approx(
        [loss + 3.0 for loss in result.losses.values()], rel=1e-6
    )


# Gradients


def aggregator_of(name: str) -> Any:
    return module_of(attached(name, 3))


def test_shared_weights_get_the_aggregate_of_the_rows_at_hand() -> None:
    for name, update, missing in product(GRADIENT_BALANCERS, UPDATES, ["", "b"]):
        if name in FIXED and missing:
            continue
        with case(name, update, missing):
            model = model_of("abc")
            (group,) = batch_of("abc", missing=missing)
            rows = rows_of(model, group, [task for task in "abc" if task not in missing])
            torch.manual_seed(3)
            expected = attached(name, 3).aggregate(rows) if not missing else aggregator_of(name)(rows)
            torch.manual_seed(3)
            engine_of(model, made_balancer(name, 3), update).step([[group]])
            torch.testing.assert_close(shared_gradient(model), expected, rtol=1e-6, atol=1e-9)


def test_heads_get_their_own_tasks_plain_gradient() -> None:
    for name, update in product(GRADIENT_BALANCERS, UPDATES):
        with case(name, update):
            model, plain = model_of("abc"), model_of("abc")
            engine_of(model, made_balancer(name, 3), update).step([batch_of("abc")])
            engine_of(plain, made_balancer("sum", 3), update).step([batch_of("abc")])
            for task in "abc":
                for key, parameter in model.task_parameters(task).items():
                    torch.testing.assert_close(
                        parameter.grad, plain.task_parameters(task)[key].grad, rtol=1e-12, atol=1e-12
                    )


def test_gradients_of_half_precision_are_combined_in_single() -> None:
    for name in GRADIENT_BALANCERS:
        with case(name):
            model = model_of("abc").bfloat16()
            (group,) = batch_of("abc")
            group = Group(group.x.bfloat16(), group.targets, group.tasks)
            rows = rows_of(model, group, "abc").float()
            torch.manual_seed(3)
            expected = aggregator_of(name)(rows).bfloat16()
            torch.manual_seed(3)
            engine_of(model, made_balancer(name, 3)).step([[group]])
            assert torch.equal(shared_gradient(model), expected)


@pytest.mark.parametrize("mask_applies_to", ["weights", "gradients"])
def test_the_sum_of_masked_rows_is_the_masked_sum(mask_applies_to: Any) -> None:
    gradients = []
    for balancing in (aggregation.Sum(), "sum"):
        model = model_of("abc")
        sharing = sm.RandomSharing(keep=0.3, mask_applies_to=mask_applies_to, seed=1)
        engine = engine_of(model, as_balancer(balancing), "average", sharing)
        Started.of(engine).begin_epoch(0, ())
        engine.step([batch_of("abc")])
        gradients.append(shared_gradient(model))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-12)


def test_an_aggregator_reads_masked_rows() -> None:
    model = model_of("abc")
    sharing = sm.RandomSharing(keep=0.3, mask_applies_to="gradients", seed=1, mask_all=True)
    engine = engine_of(model, made_balancer("mgda", 3), "average", sharing)
    Started.of(engine).begin_epoch(0, ())
    (group,) = batch_of("abc")
    rows = rows_of(model, group, "abc")
    masked = torch.stack([row * engine.networks.masks.flat(task) for row, task in zip(rows, "abc", strict=True)])
    engine.step([[group]])
    torch.testing.assert_close(shared_gradient(model), aggregator_of("mgda")(masked), rtol=1e-6, atol=1e-9)


def test_mgda_gives_a_direction_that_no_tasks_loss_objects_to() -> None:
    model = model_of("abc")
    (group,) = batch_of("abc")
    rows = rows_of(model, group, "abc")
    engine_of(model, BALANCERS.build("mgda")).step([[group]])
    direction = shared_gradient(model)
    assert bool((rows @ direction >= direction @ direction * (1 - 1e-3)).all())


def test_mgda_of_two_tasks_has_its_closed_form() -> None:
    converged = BALANCERS.build("mgda")
    converged.attach(2, CPU)
    rows = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = ((rows[1] - rows[0]) @ rows[1] / (rows[1] - rows[0]).square().sum()).clamp(0, 1)
    expected = first * rows[0] + (1 - first) * rows[1]
    torch.testing.assert_close(converged.aggregate(rows), expected, rtol=1e-4, atol=1e-6)


# Whatever the user brings


def test_a_balancer_stays_what_it_is() -> None:
    balancer = made_balancer("mean", 2)
    assert as_balancer(balancer) is balancer


@pytest.mark.parametrize(
    "scalarizer",
    [
        scalarization.Mean(),
        scalarization.Sum(),
        scalarization.Constant(torch.tensor([1.0, 2.0])),
        scalarization.UW(2),
        scalarization.DWA(),
        scalarization.GeometricMean(),
        scalarization.STCH(1.0),
    ],
    ids=str,
)
def test_a_scalarizer_is_accepted_as_it_is(scalarizer: scalarization.Scalarizer) -> None:
    balancer = as_balancer(scalarizer)
    balancer.attach(2, CPU)
    losses = torch.tensor([0.5, 2.0], requires_grad=True)
    (expected,) = torch.autograd.grad(scalarizer(losses), losses)
    assert module_of(balancer) is scalarizer
    torch.testing.assert_close(balancer.weights(losses.detach()), expected)
    assert not balancer.combines_gradients


@pytest.mark.parametrize("scalarizer", [scalarization.Mean(), scalarization.Constant(torch.tensor([1.0, 1.0]))])
def test_a_constant_scalarizer_serves_tasks_that_take_turns(scalarizer: scalarization.Scalarizer) -> None:
    model, plain = model_of(), model_of()
    engine_of(model, as_balancer(scalarizer), "alternate").step([batch_of()])
    engine_of(plain, made_balancer("mean", 2), "alternate").step([batch_of()])
    assert_equal(state_of(model), state_of(plain))


def test_a_famo_of_the_users_own_looks_back_too() -> None:
    own, ours = scalarization.FAMO(2), made_balancer("famo", 2)
    states = []
    for balancer in (as_balancer(own), ours):
        model = model_of()
        train(engine_of(model, balancer), range(3))
        states.append(state_of(model))
        assert list(balancer.parameters()) == []
    assert_equal(states[0], states[1])
    assert bool((own._w != 0).all())


@pytest.mark.parametrize(
    "aggregator", [aggregation.Mean(), aggregation.Sum(), aggregation.MGDA(), aggregation.TrimmedMean(1)], ids=str
)
def test_an_aggregator_is_accepted_as_it_is(aggregator: aggregation.Aggregator) -> None:
    model = model_of("abc")
    (group,) = batch_of("abc")
    expected = aggregator(rows_of(model, group, "abc"))
    balancer = as_balancer(aggregator)
    engine_of(model, balancer).step([[group]])
    assert isinstance(balancer, GradientBalancer)
    assert balancer.module is aggregator
    torch.testing.assert_close(shared_gradient(model), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("aggregator", ["PCD", "ExcessMTL"])
def test_an_aggregator_that_remembers_is_restored_too(aggregator: str) -> None:
    make = getattr(aggregation, aggregator)
    rows = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    one, other = as_balancer(make()), as_balancer(make())
    for balancer in (one, other):
        balancer.attach(3, CPU)
    for matrix in rows[:4]:
        one.aggregate(matrix)
    other.load_state_dict(one.state_dict())
    for matrix in rows[4:]:
        assert torch.equal(one.aggregate(matrix), other.aggregate(matrix))


@pytest.mark.parametrize("wrong", [3, None, scalarization.UW, nn.Linear(2, 2), lambda losses: losses.sum()])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(
        ParameterError, match="must be a name, a balancer, or a scalarizer or aggregator of TorchJD, got"
    ):
        as_balancer(wrong)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown balancer 'uncertanty'. Did you mean 'uncertainty'\?"):
        as_balancer("uncertanty")


def test_a_balancer_of_losses_aggregates_nothing() -> None:
    with pytest.raises(NotImplementedError, match="combines losses"):
        attached("mean", 2).aggregate(torch.ones(2, 3))
