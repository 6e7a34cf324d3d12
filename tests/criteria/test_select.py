"""From scores to masks: exactly K of the best, and the same K every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor

from sparsemtl.criteria.select import select
from sparsemtl.criteria.select_units import select_channels
from sparsemtl.criteria.top_k import budget, top_k
from sparsemtl.errors import MaskError, ParameterError

KEEPS = st.floats(0.01, 1.0)
FEW_VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf")])  # so that ties are the rule
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@st.composite
def scores(draw: st.DrawFn) -> dict[str, Tensor]:
    shapes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4))
    return {f"layer{i}": tensor(draw, shape) for i, shape in enumerate(shapes)}


def tensor(draw: st.DrawFn, shape: list[int]) -> Tensor:
    size = int(torch.tensor(shape).prod())
    return torch.tensor(draw(st.lists(FEW_VALUES, min_size=size, max_size=size))).view(shape)


def best(values: list[float], count: int) -> set[int]:
    """Indices of the largest values, among equals the first."""
    return set(sorted(range(len(values)), key=lambda index: (-values[index], index))[:count])


def flat(tensors: dict[str, Tensor]) -> list[Any]:
    return [value for t in tensors.values() for value in t.flatten().tolist()]


def kept(masks: dict[str, Tensor]) -> set[int]:
    return {index for index, value in enumerate(flat(masks)) if value}


def clamped(size: int, keep: float) -> int:
    return min(max(round(keep * size), 1), size)


@settings(deadline=None)
@given(scores(), KEEPS)
def test_global_ranking_keeps_exactly_the_k_best_the_first_among_equals(given: dict[str, Tensor], keep: float) -> None:
    values = flat(given)
    masks = select(given, keep, min_per_layer=0)
    assert kept(masks) == best(values, clamped(len(values), keep))
    assert all(masks[name].dtype == torch.bool and masks[name].shape == s.shape for name, s in given.items())


@settings(deadline=None)
@given(scores(), KEEPS, st.integers(0, 5))
def test_layerwise_ranking_keeps_exactly_the_k_best_of_each_and_no_fewer_than_the_floor(
    given: dict[str, Tensor], keep: float, floor: int
) -> None:
    masks = select(given, keep, scope="layer", min_per_layer=floor)
    for name, score in given.items():
        size = score.numel()
        assert kept({name: masks[name]}) == best(flat({name: score}), min(max(clamped(size, keep), floor), size))


@settings(deadline=None)
@given(scores(), KEEPS, st.integers(1, 3))
def test_floor_of_every_layer_comes_out_of_the_same_budget(given: dict[str, Tensor], keep: float, floor: int) -> None:
    values = flat(given)
    k = clamped(len(values), keep)
    needed = sum(min(floor, s.numel()) for s in given.values())
    if needed > k:
        with pytest.raises(ParameterError, match=f"leaves {k} of {len(values)} weights, fewer than min_per_layer"):
            select(given, keep, min_per_layer=floor)
        return
    masks = select(given, keep, min_per_layer=floor)
    assert len(kept(masks)) == k
    assert all(int(masks[name].sum()) >= min(floor, s.numel()) for name, s in given.items())
    assert kept(masks) == with_floor(given, k, floor)


def with_floor(given: dict[str, Tensor], k: int, floor: int) -> set[int]:
    """The best of every layer first, then the best of what is left."""
    chosen: set[int] = set()
    start = 0
    for score in given.values():
        chosen |= {start + i for i in best(flat({"": score}), min(floor, score.numel()))}
        start += score.numel()
    values = flat(given)
    rest = sorted((i for i in range(len(values)) if i not in chosen), key=lambda i: (-values[i], i))
    return chosen | set(rest[: k - len(chosen)])


@settings(deadline=None)
@given(scores(), KEEPS, KEEPS)
def test_keeping_more_keeps_the_same_and_more(given: dict[str, Tensor], one: float, other: float) -> None:
    less, more = (kept(select(given, keep, min_per_layer=0)) for keep in sorted([one, other]))
    assert less <= more


@each("scope", ["global", "layer"])
@each("size", [1, 2, 7, 1000])
@each("keep", [1e-9, 0.001, 0.1, 0.25, 0.3, 0.5, 0.9, 0.9999, 1.0, 1])
def test_the_budget_is_rounded_and_neither_none_nor_more_than_all(keep: float, size: int, scope: Any) -> None:
    masks = select({"w": torch.rand(size)}, keep, scope=scope)
    assert int(masks["w"].sum()) == budget(size, keep) == min(max(round(keep * size), 1), size)


def test_all_equal_scores_keep_the_lowest_indices() -> None:
    masks = select({"a": torch.ones(2, 2), "b": torch.ones(3)}, 4 / 7, min_per_layer=0)
    assert masks["a"].all()
    assert not masks["b"].any()


def test_dead_weights_do_not_push_the_count_above_k() -> None:
    """A threshold alone (Eq. 11 with >=) would keep all zeros that tie with the K-th score."""
    score = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0, 0.0])
    assert select({"w": score}, 0.5)["w"].tolist() == [True, True, False, False, True, False]


@each("dtype", DTYPES)
@each("scope", ["global", "layer"])
def test_any_precision_is_ranked(scope: Any, dtype: torch.dtype) -> None:
    score = torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=dtype)
    assert select({"w": score}, 0.5, scope=scope)["w"].tolist() == [False, True, False, True]


def test_scores_that_differ_in_the_last_digit_only_are_told_apart_across_layers() -> None:
    """Layers of other precision are compared in the widest."""
    small = torch.tensor([1.0], dtype=torch.float32)
    large = torch.tensor([1.0 + 1e-12], dtype=torch.float64)
    masks = select({"small": small, "large": large}, 0.5, min_per_layer=0)
    assert masks["large"].all()
    assert not masks["small"].any()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_order_in_memory_does_not_decide_ties(scope: Any) -> None:
    score = torch.ones(3, 4)
    assert torch.equal(select({"w": score.T.contiguous().T}, 0.5, scope=scope)["w"], select({"w": score}, 0.5)["w"])


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scores_are_not_changed(scope: Any) -> None:
    score = torch.rand(5, 5)
    before = score.clone()
    select({"w": score}, 0.3, scope=scope)
    assert torch.equal(score, before)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_nan_is_refused_with_the_parameter_that_has_it(scope: Any) -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, float("nan"), float("nan")])
    with pytest.raises(MaskError, match=r"parameter 'bad': 2 scores are NaN\. Did training diverge"):
        select({"good": good, "bad": bad}, 0.5, scope=scope)


@each("scope", ["global", "layer"])
@each("keep", [0, -0.1, 1.0001, 30, float("nan"), float("inf")])
def test_keep_out_of_range_is_refused(keep: float, scope: Any) -> None:
    with pytest.raises(ParameterError, match=r"`keep` must be in \(0, 1\]"):
        select({"w": torch.rand(4)}, keep, scope=scope)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_nothing_to_select_from_is_an_error(scope: Any) -> None:
    with pytest.raises(ParameterError, match="nothing to select from"):
        select({}, 0.5, scope=scope)


@settings(deadline=None)
@given(st.lists(FEW_VALUES, min_size=1, max_size=12), st.integers(-1, 14))
def test_top_k_marks_the_k_largest(values: list[float], k: int) -> None:
    assert kept({"": top_k(torch.tensor(values), k)}) == best(values, max(k, 0))


UNITS = {"conv.weight": ("conv.weight", "conv.bias", "bn.weight", "bn.bias"), "fc.weight": ("fc.weight",)}
SHAPES = {
    "bn.bias": (4,),
    "conv.weight": (4, 3, 2, 2),
    "free.weight": (5, 5),
    "conv.bias": (4,),
    "bn.weight": (4,),
    "fc.weight": (6, 2),
}


def channel_scores(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}


def channel_mean(given: dict[str, Tensor], names: tuple[str, ...], channel: int) -> float:
    return float(torch.cat([given[name][channel].flatten() for name in names]).double().mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), KEEPS, st.sampled_from(["global", "layer"]))
def test_whole_channels_are_kept_by_their_mean_score(seed: int, keep: float, scope: Any) -> None:
    given = channel_scores(seed)
    masks = select_channels(given, UNITS, keep, scope=scope, min_per_layer=0)
    means = {
        n: torch.tensor([channel_mean(given, names, c) for c in range(len(given[n]))]) for n, names in UNITS.items()
    }
    expected = select(means, keep, scope=scope, min_per_layer=0)
    for layer, names in UNITS.items():
        for name in names:
            rows = masks[name].flatten(1) if masks[name].ndim > 1 else masks[name][:, None]
            assert torch.equal(rows.all(1), expected[layer]), name
            assert torch.equal(rows.any(1), expected[layer]), name
    count = clamped(10, keep) if scope == "global" else clamped(4, keep) + clamped(6, keep)
    assert int(masks["conv.bias"].sum() + masks["fc.weight"][:, 0].sum()) == count


def test_what_belongs_to_no_channel_is_kept_whole_and_in_its_place() -> None:
    given = channel_scores()
    masks = select_channels(given, UNITS, 0.3)
    assert list(masks) == list(given)
    assert masks["free.weight"].all()
    assert masks["free.weight"].shape == (5, 5)


def test_every_layer_keeps_its_floor_of_channels() -> None:
    given = channel_scores()
    given["fc.weight"] /= 1e6
    masks = select_channels(given, UNITS, 0.5, min_per_layer=2)
    assert int(masks["fc.weight"][:, 0].sum()) == 2
    assert int(masks["conv.bias"].sum()) == 3


def test_masks_of_channels_do_not_share_memory() -> None:
    masks = select_channels(channel_scores(), UNITS, 0.5)
    masks["conv.weight"][0, 0, 0, 0] = ~masks["conv.weight"][0, 0, 0, 0]
    row = masks["conv.weight"][0].flatten()
    assert bool((row[1:] == row[1]).all())
    assert row[0] != row[1]


def test_channels_without_scores_of_their_biases_are_an_error_that_says_what_to_do() -> None:
    given = channel_scores()
    del given["bn.bias"]
    with pytest.raises(MaskError, match=r"'bn\.bias' belongs to a channel but has no score.*mask_all=True"):
        select_channels(given, UNITS, 0.5)


def test_nan_in_a_channel_is_refused() -> None:
    given = channel_scores()
    given["bn.weight"][1] = float("nan")
    with pytest.raises(MaskError, match=r"parameter 'conv\.weight': 1 scores are NaN"):
        select_channels(given, UNITS, 0.5)
