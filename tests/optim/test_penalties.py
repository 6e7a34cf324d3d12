"""Penalties: how weights fall into groups, what a penalty costs, and what counts as sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from itertools import product
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.optim import (
    L1,
    PENALTIES,
    Grouping,
    GroupLasso,
    GroupMCP,
    Penalty,
    group_sparsity,
    layer_sparsity,
    parameter_sparsity,
    total_sparsity,
)
from sparsemtl.optim.groups import places
from sparsemtl.optim.layers import dense
from sparsemtl.registry.parameters import parameters_of

Indices = set[tuple[int, ...]]


def diagonals(weight: Tensor) -> Tensor:
    """A user's grouping, with groups of different sizes: outputs and inputs whose sum is the same."""
    rows, columns = weight.shape[:2]
    numbers = torch.arange(rows)[:, None] + torch.arange(columns)
    return numbers.view(rows, columns, *[1] * (weight.ndim - 2))


def slow_groups(weight: Tensor, grouping: Grouping) -> list[Indices]:
    """Every group as the set of the places of its entries."""
    key: dict[Any, Callable[[tuple[int, ...]], Any]] = {
        "input-channel": lambda place: place[1],
        "output-channel": lambda place: place[0],
        "block": lambda place: (place[0] // grouping.block[0], place[1] // grouping.block[1]),
        "weight": lambda place: place,
        diagonals: lambda place: place[0] + place[1],
    }
    groups: dict[Any, Indices] = {}
    for place in product(*map(range, weight.shape)):
        groups.setdefault(key[grouping.by](place), set()).add(place)
    return list(groups.values())


def groups_of(weight: Tensor, grouping: Grouping) -> Iterator[Tensor]:
    """The entries of every group, as the grouping reads them."""
    for part in grouping.split(weight):
        values = part.read(dense(weight))
        yield from values.transpose(1, 2).flatten(2).flatten(0, 1)


GROUPINGS = [
    Grouping("input-channel", linear=True),
    Grouping("output-channel", linear=True),
    Grouping("weight", linear=True),
    Grouping("block", (2, 3), linear=True),
    Grouping("block", (4, 5), linear=True),
    Grouping("block", (100, 1), linear=True),
    Grouping(diagonals, linear=True),
]
every_grouping = each("grouping", GROUPINGS)
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.empty(5, 7, 3, 2),
    "channels last": lambda: torch.empty(5, 7, 3, 2).to(memory_format=torch.channels_last),
    "1x1": lambda: torch.empty(5, 7, 1, 1),
    "1x1 channels last": lambda: torch.empty(5, 7, 1, 1).to(memory_format=torch.channels_last),
    "one input": lambda: torch.empty(8, 1, 3, 3),
    "transposed": lambda: torch.empty(3, 2, 7, 5).permute(3, 2, 1, 0),
    "linear": lambda: torch.empty(4, 6),
    "linear transposed": lambda: torch.empty(6, 4).T,
}
every_layout = each("layout", LAYOUTS)


def numbered(layout: str) -> Tensor:
    """A weight whose entries are their own places, counted along its axes."""
    weight = LAYOUTS[layout]()
    return weight.copy_(torch.arange(weight.numel()).view(weight.shape))


@every_grouping
@every_layout
def test_groups_hold_what_their_name_says(grouping: Grouping, layout: str) -> None:
    weight = numbered(layout)
    expected = {frozenset(float(weight[place]) for place in group) for group in slow_groups(weight, grouping)}
    found = [group.tolist() for group in groups_of(weight, grouping)]
    assert {frozenset(group) for group in found} == expected
    assert sum(map(len, found)) == weight.numel()


@every_grouping
@every_layout
def test_what_is_written_into_groups_reaches_the_weight(grouping: Grouping, layout: str) -> None:
    weight = dense(numbered(layout))
    before = weight.clone()
    for part in grouping.split(weight):
        values = part.read(weight)
        values += 1000
        part.write(weight, values)
    assert torch.equal(weight, before + 1000)


@every_grouping
@each("layout", ["contiguous", "channels last", "1x1", "linear"])
def test_named_groups_are_views_of_the_weight(grouping: Grouping, layout: str) -> None:
    weight = LAYOUTS[layout]()
    for part in grouping.split(weight):
        shared = part.read(weight).untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        assert shared == (not callable(grouping.by))


@each("shape", [(1, 4, 6, 3), (5, 2, 1, 7), (3, 2, 4, 2), (1, 1, 9, 1)])
@each("size", [1, 5, 24, 1000])
def test_pieces_cut_between_groups_and_hold_every_entry_once(shape: tuple[int, ...], size: int) -> None:
    part = torch.arange(math.prod(shape)).view(shape)
    cut = [part[place] for place in places(part, size)]
    assert sorted(torch.cat([piece.flatten() for piece in cut]).tolist()) == list(range(part.numel()))
    group = shape[1] * shape[3]
    for piece in cut:
        assert (piece.shape[1], piece.shape[3]) == (shape[1], shape[3])
        assert piece.numel() <= max(size, group)


SIZES: dict[type[Penalty], Callable[[float, float], float]] = {
    GroupLasso: lambda norm, weight: weight * norm,
    GroupMCP: lambda norm, weight: (
        weight * norm - norm**2 / 4 if norm <= 2 * weight else weight**2  # gamma is 2
    ),
}


@every_grouping
@every_layout
@each("kind", SIZES)
def test_the_value_is_the_sum_over_groups(kind: type[Any], grouping: Grouping, layout: str) -> None:
    weight = LAYOUTS[layout]().double()
    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    options = {"gamma": 2.0} if kind is GroupMCP else {}
    penalty = kind(strength=0.6, granularity=grouping.by, block=grouping.block, linear=True, **options)
    expected = 0.0
    for group in slow_groups(weight, grouping):
        norm = math.sqrt(math.fsum(float(weight[place]) ** 2 for place in group))
        expected += SIZES[kind](norm, 0.6 * math.sqrt(len(group)))
    assert float(penalty.value([weight])) == pytest.approx(expected, rel=1e-12)
    other = weight.clone(memory_format=torch.contiguous_format)
    assert float(penalty.value({"a": weight, "b": other})) == pytest.approx(2 * expected, rel=1e-12)


def test_the_value_of_l1_is_the_sum_of_absolute_weights() -> None:
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    assert float(L1(strength=0.3).value([weight])) == pytest.approx(0.3 * float(weight.abs().sum()))


@pytest.mark.parametrize("penalty", [L1(strength=2.0), GroupLasso(strength=2.0), GroupMCP(strength=2.0)])
def test_the_value_has_a_gradient_also_where_a_group_is_zero(penalty: Penalty) -> None:
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    weight[:, 1] = 0
    weight.requires_grad_()
    penalty.value([weight]).backward()
    assert weight.grad is not None
    assert bool((weight.grad[:, 1] == 0).all())
    others = torch.tensor([0, 2, 3])
    assert bool((weight.grad[:, others] * weight[:, others] > 0).all())


def test_only_convolutions_are_covered_unless_linear_layers_are_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    for kind in PENALTIES.values():
        covered = {name for name, p in model.named_parameters() if kind(strength=1.0).covers(p)}
        wider = {name for name, p in model.named_parameters() if kind(strength=1.0, linear=True).covers(p)}
        assert covered == {"0.weight"}
        assert wider == {"0.weight", "3.weight"}
        convolutions = kind(strength=1.0).value(model.named_parameters())
        assert torch.equal(convolutions, kind(strength=1.0).value([model[0].weight]))


def test_penalties_are_built_by_name_and_tell_their_parameters() -> None:
    assert set(PENALTIES) == {"group-lasso", "l1", "group-mcp"}
    built = PENALTIES.build("group-lasso", strength=1e-3, granularity="block", block=[2, 4])
    assert built == GroupLasso(strength=1e-3, granularity="block", block=(2, 4))
    told = parameters_of(GroupMCP)
    assert set(told) == {"strength", "linear", "keep_min", "granularity", "block", "gamma"}
    assert told["strength"].required
    assert told["strength"].kind == "a float in [0, inf)"
    assert all(info.meaning and not info.meaning.startswith("see") for info in told.values())


def test_a_penalty_is_a_value() -> None:
    penalty = GroupLasso(strength=1e-3)
    assert penalty == GroupLasso(strength=1e-3)
    assert len({penalty, GroupLasso(strength=1e-3), replace(penalty, strength=2e-3)}) == 2
    with pytest.raises(FrozenInstanceError):
        penalty.strength = 1.0  # type: ignore[misc]


@each(
    ("make", "message"),
    [
        (lambda: GroupLasso(strength=-1.0), r"'strength' parameter of GroupLasso must be a float in \[0, inf\)"),
        (lambda: L1(strength=math.nan), "Got nan"),
        (lambda: GroupMCP(strength=1.0, gamma=0.0), r"'gamma' .* must be a float in \(0, inf\). Got 0.0"),
        (lambda: L1(strength=1.0, keep_min=-1), "'keep_min'"),
        (lambda: GroupLasso(strength=1.0, granularity="input-chanel"), "Did you mean 'input-channel'"),
        (lambda: GroupLasso(strength=1.0, granularity="block", block=(0, 2)), "`block` must be two whole numbers"),
        (lambda: GroupLasso(strength=1.0, block=(1, 2, 3)), "`block` must be two whole numbers"),
        (lambda: PENALTIES.build("group-lasso", strenght=1.0), "Did you mean 'strength'"),
    ],
)
def test_a_wrong_value_is_named(make: Callable[[], Penalty], message: str) -> None:
    with pytest.raises((ParameterError, ConfigError), match=message):
        make()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w, "whole numbers, got torch.float32"),
        (lambda w: 3, "whole numbers, got int"),
        (lambda w: torch.arange(5), r"its shape \(5,\) does not broadcast to \(2, 3, 1, 1\)"),
        (lambda w: torch.tensor([[[0]], [[-1]], [[2]]]), "count groups from 0, got -1"),
    ],
)
def test_a_grouping_function_that_gives_no_numbers_is_refused(function: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        GroupLasso(strength=1.0, granularity=function).value([torch.ones(2, 3, 1, 1)])


def test_sparsity_counts_zero_groups_and_the_weights_in_them() -> None:
    weight = torch.ones(4, 6, 3, 3)
    weight[:, [1, 4]] = 0
    weight[0] = 0
    weight[2, 3] = torch.nan
    bias = torch.zeros(4)
    model = {"conv.weight": weight, "conv.bias": bias, "fc.weight": torch.zeros(5, 5)}
    by_input = layer_sparsity(model, "input-channel")
    assert set(by_input) == {"conv.weight"}
    found = by_input["conv.weight"]
    assert (found.granularity, found.groups, found.zero_groups) == ("input-channel", 6, 2)
    assert (found.weights, found.zero_weights) == (216, 72)
    assert group_sparsity(model, "input-channel") == 2 / 6
    assert parameter_sparsity(model, "input-channel") == 72 / 216
    assert group_sparsity(model, "output-channel") == 1 / 4
    assert parameter_sparsity(model, "weight") == (54 + 3 * 18) / 216
    blocks = total_sparsity(model, Grouping("block", (4, 2)))
    assert (blocks.groups, blocks.zero_groups) == (3, 0)
    assert total_sparsity(model, Grouping(diagonals)).granularity == "diagonals"
    assert group_sparsity(model, Grouping(linear=True)) == (2 + 5) / (6 + 5)


@every_grouping
@every_layout
def test_sparsity_agrees_with_a_loop_over_groups(grouping: Grouping, layout: str) -> None:
    weight = LAYOUTS[layout]()
    weight.copy_((torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.1).float())
    zero = [g for g in slow_groups(weight, grouping) if not any(float(weight[place]) for place in g)]
    found = total_sparsity({"weight": weight}, grouping)
    assert (found.groups, found.zero_groups) == (len(slow_groups(weight, grouping)), len(zero))
    assert (found.weights, found.zero_weights) == (weight.numel(), sum(map(len, zero)))


def test_a_model_without_groups_has_no_sparsity() -> None:
    with pytest.raises(ParameterError, match="nothing to measure"):
        group_sparsity(nn.Linear(3, 2).named_parameters())


def test_the_optimizers_are_reached_from_the_package() -> None:
    assert sm.optim.ProximalAdamW.__name__ in sm.optim.__all__
    assert set(sm.optim.__all__) <= set(dir(sm.optim))
