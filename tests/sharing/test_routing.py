"""Task routing and maximum roaming: units per task, and how they move."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from routed_toys import TASKS, TOYS, batch_of, model_of
from states import assert_same, state_of
from torch import Tensor, nn
from torch.func import functional_call

import sparsemtl as sm
from sparsemtl.errors import MaskError, ParameterError
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.units import UnitLayer, deal
from sparsemtl.storage.files import read_tree, write_tree
from sparsemtl.training.steps.step import TrainingStep

every_toy = each("toy", TOYS)
ROUTING, ROAMING = sm.TaskRoutingSharing, sm.MaximumRoamingSharing
every_method = each("method", [ROUTING, ROAMING])


def drawn(sharing: Any, model: sm.MultiTaskModel, toy: str) -> TaskNetworks:
    networks = sharing.begin_epoch(0, model, sharing.start(model), [batch_of(toy)])
    networks.check(model)
    return networks


def units(networks: TaskNetworks, toy: str) -> dict[str, dict[str, Tensor]]:
    """Task -> layer -> units."""
    places = TOYS[toy][2].items()
    return {
        t: {layer: network.output_factors[f"encoder.{place}"] for layer, place in places}
        for t, network in networks.items()
    }


# ---- which units ------------------------------------------------------------------------------------------------


@every_method
@every_toy
@each("keep", [0.05, 0.5, 0.9, 1.0])
def test_every_task_uses_exactly_its_share_of_every_layer(method: Any, toy: str, keep: float) -> None:
    networks = drawn(method(keep=keep, seed=3), model_of(toy), toy)
    for own in units(networks, toy).values():
        for mask in own.values():
            least = ceil(len(mask) / len(TASKS)) - 1 if method is ROAMING else 0  # so that every unit has a task
            assert max(ceil(keep * len(mask) - 1e-9), least, 1) <= int(mask.sum())
            assert int(mask.sum()) <= max(ceil(keep * len(mask) - 1e-9), ceil(len(mask) / len(TASKS)) * bool(least))


@every_toy
def test_nothing_else_is_masked(toy: str) -> None:
    networks = drawn(ROUTING(keep=0.5, seed=3), model_of(toy), toy)
    places = {f"encoder.{place}" for place in TOYS[toy][2].values()}
    places |= {"residual": {"encoder.second"}, "hidden": {"encoder.0"}}.get(toy, set())
    for network in networks.values():
        assert set(network.masked_outputs) == places
        assert not network.weight_factors
        assert not any("heads" in name or "attn" in name for name in network.kept_weights)


@each(("channels", "keep", "expected"), [(10, 0.9, 9), (10, 0.3, 3), (7, 0.5, 4), (3, 0.1, 1)])
@each("cover", [False, True])
def test_shares_are_rounded_up_without_errors_of_floating_point(
    channels: int, keep: float, expected: int, cover: bool
) -> None:
    masks = deal(UnitLayer("layer", channels, ("layer",), {}), TASKS, keep, torch.Generator(), cover=cover)
    own = {number: len(range(number, channels, len(TASKS))) if cover else 0 for number in range(len(TASKS))}
    assert [int(mask.sum()) for mask in masks.values()] == [max(expected, own[number]) for number in own]
    if cover:
        assert bool(torch.stack(list(masks.values())).any(0).all())


@every_toy
def test_roaming_begins_with_a_task_for_every_unit_and_routing_if_asked(toy: str) -> None:
    for sharing in (ROAMING(keep=0.1, seed=0), ROUTING(keep=0.1, cover=True, seed=0)):
        found = units(drawn(sharing, model_of(toy), toy), toy)
        for layer in TOYS[toy][2]:
            assert bool(torch.stack([found[task][layer] for task in TASKS]).any(0).all())


@every_method
def test_the_same_seed_draws_the_same_units_and_another_seed_others(method: Any) -> None:
    first, again, other = (
        drawn(method(keep=0.5, seed=seed), model_of("residual"), "residual").masks for seed in (1, 1, 2)
    )
    assert first == again != other
    assert not torch.equal(first.flat("a"), first.flat("b"))
    model = model_of("residual")
    torch.manual_seed(1)  # the seed of the run, where the method has none
    assert first == drawn(method(keep=0.5), model, "residual").masks


def test_layers_are_named_by_only_and_exclude() -> None:
    model = model_of("residual")
    named = drawn(ROUTING(only="encoder.first", seed=0), model, "residual")
    assert set(named["a"].masked_outputs) == {"encoder.norm1"}
    rest = drawn(ROUTING(exclude="encoder.first", seed=0), model, "residual")
    assert set(rest["a"].masked_outputs) == {"encoder.second", "encoder.norm2", "encoder.shortcut.1"}
    left_out = named.masks.describe().left_out
    assert left_out["encoder.second.weight"].reason == "not named by `only`"
    with pytest.raises(ParameterError, match="no parameter, module or class of modules matches 'nothing'"):
        ROUTING(only="nothing").start(model)


def test_attention_keeps_its_outputs_unless_it_is_named() -> None:
    model = sm.SharedBottom(Projected(), [sm.Regression("a"), sm.Regression("b")])
    x, targets = torch.randn(4, 4), {"a": torch.randn(4), "b": torch.randn(4)}
    model(x)
    for only, expected in ((None, {"encoder.out"}), ("encoder.inner", {"encoder.inner.project"})):
        sharing = ROUTING(keep=0.5, only=only, seed=0)
        networks = sharing.begin_epoch(0, model, sharing.start(model), [(x, targets)])
        assert set(networks["a"].masked_outputs) == expected
    assert (
        "whose units are heads" in ROUTING().start(model).masks.describe().left_out["encoder.inner.project.weight"][1]
    )


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = SelfAttention(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.out(self.inner(x)))


# ---- what a task computes ---------------------------------------------------------------------------------------


@every_method
@every_toy
def test_a_masked_unit_is_zero_and_gets_no_gradient(method: Any, toy: str) -> None:
    model = model_of(toy).train()
    networks = drawn(method(keep=0.5, seed=2), model, toy)
    x, targets = batch_of(toy)
    for task in TASKS:
        model.zero_grad()
        with networks.swapped(model, task):
            model.tasks[task].loss(model(x, [task])[task], targets[task]).backward()
        for name, mask in networks[task].kept_weights.items():
            gradient = model.get_parameter(name).grad
            if gradient is not None and "unused" not in name:
                assert not bool(gradient[~mask].any()), name
                assert bool(gradient[mask].any()), name


@every_toy
def test_plain_copies_weights_and_masks_compute_the_same(toy: str) -> None:
    model = model_of(toy).eval()
    networks, (x, _) = drawn(ROUTING(keep=0.5, seed=2), model, toy), batch_of(toy)
    with torch.no_grad():
        for task in TASKS:
            with networks.swapped(model, task):
                expected = model(x, [task])[task]
            assert not torch.equal(expected, model(x)[task])
            copied = networks.network(model, task)
            assert torch.equal(copied(x)[task], expected)
            assert not any(module._forward_hooks for module in copied.modules())
            tensors: Any = networks.tensors(model, task)
            assert torch.equal(functional_call(model, tensors, (x,))[task], expected)
            with networks.masks.applied(model, task):
                torch.testing.assert_close(model(x)[task], expected)
    assert not any(module._forward_hooks for module in model.modules())


@every_toy
def test_each_task_gets_a_smaller_network_with_its_outputs(toy: str) -> None:
    model = model_of(toy).eval().double()
    networks, (x, _) = drawn(ROUTING(keep=0.5, seed=2), model, toy), batch_of(toy)
    with networks.swapped(model, "a"), torch.no_grad():
        expected = model(x.double(), ["a"])["a"]
    small = sm.compact(model, networks, task="a", example_inputs=x.double())
    torch.testing.assert_close(small(x.double()), expected, rtol=1e-12, atol=1e-12)
    assert sm.parameter_count(small) < sm.parameter_count(networks.network(model, "a"))
    chain = {
        "convolutions": ["0", "3"],
        "hidden": [],
        "residual": ["first"],
        "twice": [],
        "transformer": ["layer.linear1"],
    }
    for layer in chain[toy]:
        kept = int(units(networks, toy)["a"][layer].sum())
        assert small.report.layer(f"encoder.{layer}").outputs[1] == kept


@every_method
@every_toy
def test_states_files_and_devices_keep_the_units(method: Any, toy: str, tmp_path: Path) -> None:
    model = model_of(toy)
    networks = drawn(method(keep=0.5, seed=2), model, toy)
    networks.save(tmp_path / "networks.safetensors")
    for again in (
        networks.to("cpu"),
        networks.detached(),
        method(keep=0.5).start(model).restored(networks.state_dict()),
        TaskNetworks.load(tmp_path / "networks.safetensors", model),
    ):
        assert again.masks == networks.masks
        assert_same(
            {t: dict(n.output_factors) for t, n in again.items()},
            {t: dict(n.output_factors) for t, n in networks.items()},
        )


def test_a_factor_of_another_width_is_refused_by_name() -> None:
    networks = drawn(ROUTING(seed=0), model_of("hidden"), "hidden")
    with pytest.raises(MaskError, match=r"SharedBottom has no parameter or buffer 'encoder\.0\.weight'"):
        networks.check(model_of("residual"))
    wider = sm.SharedBottom(
        nn.Sequential(nn.Linear(4, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh()),
        [sm.Regression(name) for name in TASKS],
    )
    factors = {t: sm.TaskNetwork(output_factors=n.output_factors) for t, n in networks.items()}
    with pytest.raises(MaskError, match=r"'encoder.0' has shape \(7,\), that module of SharedBottom has 9 channels"):
        TaskNetworks(factors).check(wider)


# ---- roaming ----------------------------------------------------------------------------------------------------


def roamed(sharing: sm.MaximumRoamingSharing, toy: str, epochs: int, batches: int = 1) -> list[TaskNetworks]:
    """Networks at the beginning of every epoch and after every batch."""
    model, data = model_of(toy), [batch_of(toy, seed=seed) for seed in range(batches)]
    networks, seen = sharing.start(model), []
    for epoch in range(epochs):
        networks = sharing.begin_epoch(epoch, model, networks, data) or networks
        seen.append(networks)
        for _ in data:
            networks = sharing.after_batch(model, networks, 1) or networks
            seen.append(networks)
    return seen


@every_toy
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_units_move_one_by_one_until_each_has_served_every_task(toy: str, keep: float) -> None:
    sharing = ROAMING(keep=keep, update_every=1, seed=4)
    seen = [units(networks, toy) for networks in roamed(sharing, toy, epochs=9)][::2]
    for task in TASKS:
        for layer in TOYS[toy][2]:
            masks = [found[task][layer] for found in seen]
            served, first = masks[0].clone(), int(masks[0].sum())
            for number, (before, after) in enumerate(pairwise(masks)):
                came, went = after & ~before, before & ~after
                moves = int(not bool(served.all()))
                assert (int(came.sum()), int(went.sum())) == (moves, moves)
                assert not bool((came & served).any()), "a unit came that had served the task before"
                served |= after
                assert bool(served.all()) == (number + 1 >= len(served) - first)
            assert all(int(mask.sum()) == first for mask in masks)
    figures = {(task, name): value for task, name, value in sharing.metrics(model_of(toy), roamed(sharing, toy, 9)[-1])}
    assert all(figures[task, "served"] == 1.0 for task in TASKS)


def changes(seen: list[TaskNetworks], toy: str, layer: str) -> list[int]:
    """Numbers of the networks in which the units of a layer differ from those before."""
    masks = [units(networks, toy)["a"][layer] for networks in seen]
    return [number for number, (one, other) in enumerate(pairwise(masks), 1) if not torch.equal(one, other)]


def test_updates_are_due_every_fraction_of_an_epoch_but_not_at_its_end() -> None:
    # 4 batches: numbers 0, 5, 10 are the beginnings of epochs, those between are the ends of batches
    seen = roamed(ROAMING(keep=0.2, update_every=0.5, seed=0), "residual", epochs=3, batches=4)
    assert changes(seen, "residual", "first") == [2, 5, 7, 10]  # 6 units, 2 of them from the start
    assert changes(roamed(ROAMING(keep=0.2, update_every=1.5, seed=0), "residual", 4, 4), "residual", "first") == [
        7,
        15,
    ]


def test_all_layers_finish_together_where_asked_to() -> None:
    seen = roamed(ROAMING(keep=0.5, reach_at=2, seed=0), "convolutions", epochs=4, batches=6)
    first, second = (changes(seen, "convolutions", layer) for layer in ("0", "3"))  # 2 and 3 updates
    assert (len(first), len(second)) == (2, 3)
    assert first[-1] == second[-1] == 14  # the beginning of epoch 2


def test_a_loader_without_length_has_its_updates_between_epochs_until_one_was_counted() -> None:
    sharing, model = ROAMING(keep=0.2, update_every=0.5, seed=0), model_of("residual")
    networks = sharing.start(model)
    for epoch, expected in enumerate([0, 1]):
        networks = sharing.begin_epoch(epoch, model, networks, iter([batch_of("residual")])) or networks
        found = [sharing.after_batch(model, networks, 1) for _ in range(2)]
        assert sum(change is not None for change in found) == expected
        networks = next((change for change in found if change is not None), networks)
    assert sharing.state_dict()["updates"]["encoder.first"] == 3


@pytest.mark.parametrize("update", ["average", "random_one"])
def test_training_goes_on_in_the_middle_of_an_epoch_bit_for_bit(update: Any, tmp_path: Path) -> None:
    def started() -> TrainingStep:
        model, sharing = model_of("residual"), ROAMING(keep=0.3, update_every=0.4, update=update, seed=1)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        return TrainingStep(model, optimizer, sharing.start(model), sharing=sharing)

    def train(step: TrainingStep, epoch: int, batches: range) -> None:
        sharing: Any = step.sharing
        data = [batch_of("residual", seed=seed) for seed in range(4)]
        if batches.start == 0:
            step.networks = sharing.begin_epoch(epoch, step.model, step.networks, data) or step.networks
        for number in batches:
            step(*data[number])

    torch.manual_seed(3)
    whole = started()
    train(whole, 0, range(4))
    train(whole, 1, range(2))
    parts: Mapping[str, Any] = {
        "model": whole.model,
        "sharing": whole.sharing,
        "step": whole,
        "optimizer": whole.optimizer,
    }
    write_tree(tmp_path / "state.safetensors", {name: part.state_dict() for name, part in parts.items()})
    random = torch.get_rng_state()
    again, state = started(), read_tree(tmp_path / "state.safetensors")
    for name, part in {
        "model": again.model,
        "sharing": again.sharing,
        "step": again,
        "optimizer": again.optimizer,
    }.items():
        part.load_state_dict(state[name])  # type: ignore[union-attr]
    for step in (whole, again):
        torch.set_rng_state(random)
        train(step, 1, range(2, 4))
        train(step, 2, range(4))
    assert_same(state_of(again.model), state_of(whole.model))
    assert_same(again.networks.state_dict(), whole.networks.state_dict())


def test_two_paces_are_one_too_many() -> None:
    with pytest.raises(ParameterError, match="give `update_every` or `reach_at`"):
        ROAMING(update_every=1, reach_at=3)


# ---- one task per batch -----------------------------------------------------------------------------------------


def test_one_task_is_drawn_uniformly_among_those_with_labels_and_trained_alone() -> None:
    model, (x, targets) = model_of("hidden"), batch_of("hidden")
    sharing = sm.DenseSharing(update="random_one")
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), 0.0), sharing.start(model), sharing=sharing)
    torch.manual_seed(0)
    counts = dict.fromkeys(TASKS, 0)
    for _ in range(300):
        (task,) = step(x, targets).losses
        counts[task] += 1
    assert all(abs(count - 100) < 3 * (300 * 2 / 9) ** 0.5 for count in counts.values())
    partly = {**targets, "b": torch.full((6,), float("nan"))}
    assert {task for _ in range(20) for task in step(x, partly).losses} == {"a", "c"}


def test_a_drawn_task_takes_the_step_that_it_would_take_in_turn() -> None:
    ends = []
    for update in ("random_one", "alternate"):
        model, (x, targets) = model_of("hidden"), batch_of("hidden")
        sharing = ROUTING(keep=0.5, update=update, seed=0)
        networks = drawn(sharing, model, "hidden")
        step = TrainingStep(model, torch.optim.Adam(model.parameters(), 0.1), networks, sharing=sharing)
        torch.manual_seed(5)
        if update == "random_one":
            (task,) = step(x, targets).losses
        else:
            step(x, {name: y if name == task else torch.full_like(y, float("nan")) for name, y in targets.items()})
        ends.append(state_of(model))
    assert_same(*ends)


def test_a_balancer_that_combines_tasks_is_refused() -> None:
    model, sharing = model_of("hidden"), ROUTING(update="random_one")
    with pytest.raises(ParameterError, match=r"update='random_one' takes a step for one task at a time"):
        TrainingStep(
            model, torch.optim.SGD(model.parameters(), 0.1), sharing.start(model), sharing=sharing, balancing="mgda"
        )
