"""Units that are dead, floors that keep them alive, fractions per task, and the default of the ranking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.criteria import Criterion, Random, choose_masks, select
from sparsemtl.criteria.neurons import dead_units, incoming, owners_of, select_alive
from sparsemtl.criteria.top_k import budget
from sparsemtl.errors import DeadUnitWarning, ParameterError


def model() -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6))
    tasks = [sm.Regression("a"), sm.Regression("b")]
    return sm.SharedBottom(encoder, tasks, {task.name: nn.Linear(6, 1) for task in tasks})


def chosen(keep: Any, criterion: Criterion | None = None, **options: Any) -> sm.TaskMasks:
    return choose_masks(criterion or Random(seed=1), model(), [], keep=keep, **options)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("floor", [1, 2])
def test_every_unit_keeps_its_best_weights_and_the_rest_is_ranked(floor: int, scope: Any) -> None:
    network = model()
    scores = Random(seed=3).scores(network, (), list(network.tasks.values()))["a"]
    masks = select_alive(scores, 0.25, model=network, min_per_unit=floor, scope=scope)
    plain = select(scores, 0.25, scope=scope)
    size, spare = sum(score.numel() for score in scores.values()), 0
    for name, mask in masks.items():
        best = torch.zeros_like(mask)
        for unit, row in enumerate(scores[name]):
            best[unit, row.topk(floor).indices] = True
        assert bool(mask[best].all())
        left = scores[name][mask & ~best]
        spare += int((mask & ~best).sum())
        if left.numel() and scope == "layer":
            assert float(left.min()) > float(scores[name][~mask].max())
        if scope == "layer":
            assert int(mask.sum()) == max(budget(mask.numel(), 0.25), int(best.sum()))
    if scope == "global":
        assert sum(int(mask.sum()) for mask in masks.values()) == budget(size, 0.25)
    assert spare
    assert any(not torch.equal(masks[name], plain[name]) for name in masks)


def test_a_floor_of_no_weights_is_the_selection_itself() -> None:
    assert chosen(0.3, min_per_unit=0) == chosen(0.3)


def test_a_floor_above_the_budget_is_refused_with_both_numbers() -> None:
    with pytest.raises(ParameterError, match="leaves 10 of 192 weights, fewer than the 18 that min_per_unit=1 needs"):
        chosen(0.05, scope="global", min_per_unit=1)
    masks = chosen(0.05, min_per_unit=1)  # ranked per layer, whose budgets are raised
    assert {task: masks.count(task) for task in masks} == {"a": 18, "b": 18}
    with pytest.raises(ParameterError, match="`min_per_unit` is for granularity 'weight'"):
        chosen(0.5, granularity="channel", min_per_unit=1)


def test_dead_units_are_those_without_a_weight_and_are_warned_of() -> None:
    with pytest.warns(DeadUnitWarning, match=r"Random: units are dead.*task 'a': \d+% of 'encoder\.\d\.weight'"):
        masks = chosen(0.05)
    for task, shares in dead_units(masks, model()).items():
        for name, share in shares.items():
            rows = masks[task][name].any(1)
            assert share == pytest.approx(1 - int(rows.sum()) / len(rows))
    alive = chosen(0.05, min_per_unit=1)
    assert all(share == 0 for shares in dead_units(alive, model()).values() for share in shares.values())


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(3, 4), nn.Conv2d(4, 6, 2, groups=2), nn.ConvTranspose2d(4, 6, 2, groups=2)],
    ids=["linear", "conv", "transposed"],
)
@torch.no_grad()
def test_the_incoming_weights_of_a_unit_are_those_that_its_output_depends_on(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    rows = incoming(torch.arange(weight.numel()).view_as(weight), layer)
    assert sorted(rows.flatten().tolist()) == list(range(weight.numel()))
    assert owners_of(layer)[id(weight)] is layer
    weight.fill_(1.0).view(-1)[rows[1]] = 0.0
    layer.get_parameter("bias").fill_(0.0)
    out = layer(torch.ones(1, 4, 3, 3) if weight.ndim > 2 else torch.ones(1, 3))
    assert [unit for unit in range(out.shape[1]) if not bool(out[:, unit].any())] == [1]


def test_tasks_keep_as_much_as_is_asked_for_each_and_all_where_nothing_is() -> None:
    masks = chosen({"b": 0.25})
    assert {task: masks.density(task) for task in masks} == {"a": 1.0, "b": 0.25}
    assert torch.equal(masks.flat("b"), chosen(0.25).flat("b"))
    with pytest.raises(ParameterError, match="`keep`: unknown task 'c'"):
        chosen({"c": 0.25})
    with pytest.raises(ParameterError, match=r"`keep` must be in \(0, 1\], got 1.5"):
        chosen({"a": 1.5})


def test_layers_are_ranked_separately_below_a_fifth() -> None:
    for keep, scope in ((0.1, "layer"), (0.19, "layer"), (0.2, "global"), (0.5, "global")):
        assert chosen(keep) == chosen(keep, scope=scope)
    assert chosen(0.19) != chosen(0.19, scope="global")
    mixed = chosen({"a": 0.1, "b": 0.5})
    assert torch.equal(mixed.flat("a"), chosen(0.1, scope="layer").flat("a"))
    assert torch.equal(mixed.flat("b"), chosen(0.5, scope="global").flat("b"))
