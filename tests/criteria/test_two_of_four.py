"""Masks that keep two of every four consecutive inputs of a row."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.criteria.two_of_four import input_axes, select_two_of_four
from sparsemtl.errors import NonFiniteScoreError, ParameterError


@pytest.mark.parametrize(("shape", "axis"), [((3, 8), 1), ((2, 7), 1), ((5, 3), 0), ((2, 9, 2, 3), 1), ((2, 1), 1)])
def test_the_best_pair_of_every_group_is_kept_as_brute_force_finds_it(shape: tuple[int, ...], axis: int) -> None:
    score = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0)).double()  # with ties
    found = select_two_of_four({"w": score}, 0.5, axes={"w": axis})["w"]
    expected = torch.zeros_like(found)
    rows, wanted = score.movedim(axis, -1), expected.movedim(axis, -1)
    for place in torch.cartesian_prod(*[torch.arange(size) for size in rows.shape[:-1]]).view(-1, rows.ndim - 1):
        at = tuple(place.tolist())
        wanted[at] = best_pairs(rows[at])
    assert torch.equal(found, expected)


def best_pairs(row: Tensor) -> Tensor:
    """Return the best pair of every four entries: of the largest sum, then the first."""
    kept = torch.zeros(len(row), dtype=torch.bool)
    for start in range(0, len(row), 4):
        group = list(range(start, min(start + 4, len(row))))
        pairs = combinations(group, min(2, len(group)))
        kept[list(max(pairs, key=lambda pair: (float(row[list(pair)].sum()), [-index for index in pair])))] = True
    return kept


def test_parameters_without_inputs_are_kept_whole_and_everything_is_at_one() -> None:
    scores = {"w": torch.rand(3, 4), "b": torch.rand(3)}
    half = select_two_of_four(scores, 0.5, axes={"w": 1, "b": 1})
    assert half["b"].all()
    assert half["w"].sum(1).tolist() == [2, 2, 2]
    assert all(mask.all() for mask in select_two_of_four(scores, 1.0, axes={"w": 1, "b": 1}).values())


def test_inputs_lie_on_the_first_axis_of_transposed_convolutions() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 3, 2), nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    axes = input_axes(model)
    assert (axes["0.weight"], axes["1.weight"], axes["2.weight"]) == (0, 1, 1)


@pytest.mark.parametrize("wrong", [0.3, {"a": 0.5, "b": 0.4}])
def test_any_other_fraction_is_refused(wrong: Any) -> None:
    with pytest.raises(ParameterError, match=r"granularity '2:4' keeps half of the weights: say keep=0.5, got 0\.[34]"):
        sm.RandomSharing(keep=wrong, granularity="2:4")
    with pytest.raises(ParameterError, match="leave out `target_sparsity`"):
        sm.RandomSharing(keep=0.5, granularity="2:4", target_sparsity=0.5, reach_at=3)


def test_scores_that_are_not_a_number_are_refused() -> None:
    with pytest.raises(NonFiniteScoreError, match="'w': 1 scores are NaN"):
        select_two_of_four({"w": torch.tensor([[1.0, torch.nan]])}, 0.5, axes={"w": 1})


def test_tasks_train_on_patterns_of_their_own() -> None:
    torch.manual_seed(0)
    tasks = [sm.Classification("a", 2), sm.Classification("b", 2)]
    model = sm.SharedBottom(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), tasks)
    x, labels = torch.rand(16, 8), torch.tensor([0, 1] * 8)
    loader = [(x, {"a": labels, "b": 1 - labels * (x[:, 0] > 0.5).long()})]
    model(x)
    masks = sm.fisher_masks(model, loader, keep=0.5, granularity="2:4", samples=16)
    for task in masks:
        groups = masks[task]["encoder.0.weight"].view(8, 2, 4)
        assert (groups.sum(-1) == 2).all()
    assert masks.density("a") == 0.5
