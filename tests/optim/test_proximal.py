"""Proximal maps: exact for every group, also where a group is about to vanish."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import each
from proximal_oracles import over_groups, same_bits, slow_l1, slow_lasso
from torch import Tensor

from sparsemtl.optim import proximal
from sparsemtl.optim.proximal import Reused, group_lasso_, group_mcp_, l1_, lasso_pull, mcp_pull, norms, sums

SHAPES = [(1, 1, 5, 7), (1, 6, 5, 1), (2, 3, 4, 2), (3, 2, 1, 70), (1, 1, 1, 1)]
every_shape = each("shape", SHAPES)


def problem(shape: tuple[int, ...], seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Entries, and shifts that lie e^spread apart; about half of the groups of a problem vanish."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    shift = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()
    return x, shift * float(norms(x / shift).median()) * 1.01


def scaled_to_pull(x: Tensor, shift: Tensor, pull: float) -> Tensor:
    """The shifts, scaled such that ||x / shift|| of every group is `pull`."""
    return shift * norms(x / shift) / pull


def residual(z: Tensor, x: Tensor, shift: Tensor) -> Tensor:
    """How far d (z - x) + tau z / ||z|| is from zero, relative to d x."""
    return ((z - x) / shift + z / norms(z)).abs() / (x / shift).abs()


@every_shape
@each("spread", [0.0, 1.0, 4.0])
def test_group_lasso_is_what_bisection_finds_in_every_group(shape: tuple[int, ...], spread: float) -> None:
    for seed in range(4):
        x, shift = problem(shape, seed, spread)
        z = x.clone()
        alive = group_lasso_(z, shift.clone())
        expected = over_groups(slow_lasso, x, shift)
        torch.testing.assert_close(z, expected, rtol=1e-11, atol=1e-14)
        assert torch.equal(alive, norms(expected) > 0)


@every_shape
def test_the_plain_map_shrinks_every_group_by_the_shift(shape: tuple[int, ...]) -> None:
    x, _ = problem(shape)
    shift = float(norms(x).median()) * 1.01
    z = x.clone()
    alive = group_lasso_(z, shift)
    torch.testing.assert_close(z, over_groups(slow_lasso, x, torch.full_like(x, shift)), rtol=1e-12, atol=1e-14)
    assert torch.equal(alive, norms(x) > shift)


@every_shape
def test_a_metric_that_is_a_multiple_of_the_identity_gives_the_plain_map(shape: tuple[int, ...]) -> None:
    x, _ = problem(shape)
    shift = float(norms(x).median()) * 0.9
    plain, metric = x.clone(), x.clone()
    group_lasso_(plain, shift)
    group_lasso_(metric, torch.full_like(x, shift))
    torch.testing.assert_close(metric, plain, rtol=1e-13, atol=1e-15)


@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 12),
    pull=st.floats(1e-6, 1e6).map(lambda f: 1 + f),
    shape=st.sampled_from(SHAPES),
)
@settings(deadline=None)
def test_what_survives_is_optimal(seed: int, spread: float, pull: float, shape: tuple[int, ...]) -> None:
    x, shift = problem(shape, seed, spread)
    shift = scaled_to_pull(x, shift, pull)
    z = x.clone()
    assert bool(group_lasso_(z, shift.clone()).all())
    assert float(residual(z, x, shift).max()) < 1e-14 * max(1.0, pull)


@each("distance", [10.0**-k for k in range(2, 15)])
def test_just_above_the_threshold_a_group_survives_and_is_optimal(distance: float) -> None:
    x, shift = problem((1, 6, 5, 3), spread=2.0)
    shift = scaled_to_pull(x, shift, 1 + distance)
    z = x.clone()
    assert bool(group_lasso_(z, shift.clone()).all())
    assert bool((norms(z) > 0).all())
    assert float(residual(z, x, shift).max()) < 1e-13
    bound = distance * norms(x / shift).pow(3) / sums(x.square() / shift.pow(3))  # Newton's step from zero
    assert bool((norms(z) / bound < 1.1).all())
    assert bool((norms(z) / bound > 0.5).all())


@each("distance", [0.0, *(10.0**-k for k in range(2, 15))])
def test_at_the_threshold_and_just_below_a_group_is_zero(distance: float) -> None:
    x = torch.tensor([0.5, -0.5, 0.5, 0.5], dtype=torch.float64).view(1, 4, 1, 1)
    shift = torch.full_like(x, 1 + distance)  # ||x|| = 1 exactly
    z = x.clone()
    assert not bool(group_lasso_(z, shift))
    assert bool((z == 0).all())
    plain = x.clone()
    assert not bool(group_lasso_(plain, 1 + distance))
    assert bool((plain == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [2, 3, 8])
def test_a_group_survives_a_few_units_of_the_last_place_above_the_threshold(dtype: torch.dtype, units: int) -> None:
    x = torch.tensor([0.5, 0.5, 0.5, 0.5, 2.0**-20], dtype=dtype).view(1, 5, 1, 1)
    shift = torch.full_like(x, 1 - units * torch.finfo(dtype).eps)
    shift[:, 4] = 2.0**30  # an entry that is all but lost, so that the search starts at zero
    z = x.clone()
    assert bool(group_lasso_(z, shift))
    assert bool((z > 0).all())


def test_the_threshold_of_the_plain_map_is_exact() -> None:
    x = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    for shift, alive in ((5.0, False), (math.nextafter(5.0, 6), False), (4.9999995, True)):
        z = x.clone()
        assert bool(group_lasso_(z, shift)) == alive
        assert bool((z != 0).all()) == alive


@each("spread", [0.0, 1.0, 4.0, 8.0])
@each("pull", [1.0001, 1.5, 10, 1e4])
def test_single_precision_is_optimal_to_a_millionth(spread: float, pull: float) -> None:
    x, shift = problem((1, 40, 30, 9), spread=spread)
    x, shift = x.float(), scaled_to_pull(x, shift, pull).float()
    z = x.clone()
    assert bool(group_lasso_(z, shift.clone()).all())
    z, x, shift = z.double(), x.double(), shift.double()
    force = (z - x) / shift + z / norms(z)
    assert float((force.abs() / (x / shift).abs()).max()) < 1e-6


def test_ten_newton_steps_are_enough_for_metrics_that_span_ten_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proximal, "_MOST_STEPS", 10)
    for seed in range(20):
        for pull in (1 + 1e-9, 1.01, 1.5, 100.0):
            x, shift = problem((1, 30, 20, 1), seed, spread=5.0)
            shift = scaled_to_pull(x, shift, pull)
            z = x.clone()
            group_lasso_(z, shift.clone())
            assert float(residual(z, x, shift).max()) < 1e-12 * pull


def test_the_order_of_groups_and_of_their_entries_does_not_matter() -> None:
    x, shift = problem((2, 5, 8, 3))
    rows, groups, inner = torch.tensor([1, 0]), torch.randperm(8), torch.randperm(5)
    straight, shuffled = x.clone(), x[rows][:, inner][:, :, groups].clone()
    group_lasso_(straight, shift.clone())
    group_lasso_(shuffled, shift[rows][:, inner][:, :, groups].clone())
    torch.testing.assert_close(shuffled, straight[rows][:, inner][:, :, groups], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_group_of_zeros_stays_zero_and_is_never_nan(shift: float) -> None:
    x, d = problem((1, 3, 4, 2))
    x[:, :, 1] = 0
    for shrink in (
        lambda z, s: group_lasso_(z, s),
        lambda z, s: group_mcp_(z, s, 1.0),
        lambda z, s: l1_(z, s),
    ):
        for own in [shift, *([shift * d] if shift else [])]:
            z = x.clone()
            alive = shrink(z, own.clone() if isinstance(own, Tensor) else own)
            assert bool((z[:, :, 1] == 0).all())
            assert not bool(alive[:, :, 1].any())
            assert not bool(z.isnan().any())


@pytest.mark.parametrize("shrink", [group_lasso_, l1_, lambda z, s: group_mcp_(z, s, 1.0)])
def test_a_shift_of_zero_changes_no_bit(shrink) -> None:
    x, _ = problem((1, 3, 4, 2))
    z = x.clone()
    shrink(z, 0.0)
    assert same_bits(z, x)


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("shrink", [group_lasso_, l1_, lambda z, s: group_mcp_(z, s, 1.0)])
def test_nan_is_never_made_zero(shrink, metric: bool) -> None:
    x, shift = problem((1, 3, 4, 2))
    x[0, 1, 2, 0] = torch.nan
    z, expected = x.clone(), x.clone()
    expected[0, 1, 2, 0] = 0.0
    shrink(z, shift.clone() if metric else 0.5)
    shrink(expected, shift.clone() if metric else 0.5)
    assert bool(z[0, 1, 2, 0].isnan())
    others = [0, 1, 3]
    torch.testing.assert_close(z[:, :, others], expected[:, :, others], rtol=1e-12, atol=0)


def test_weights_without_any_metric_become_zero_or_stay_with_a_group_beyond_the_limit() -> None:
    x = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    shift = torch.tensor([torch.inf, 1e-3, 1e-3, torch.inf], dtype=torch.float64).view_as(x)
    lasso, mcp = x.clone(), x.clone()
    group_lasso_(lasso, shift.clone())
    group_mcp_(mcp, shift.clone(), 1.0)
    assert (lasso.flatten() > 0).tolist() == [False, True, True, False]
    assert torch.equal(mcp, x)


@each("shifts", [[1e-30, 1e6, 1e-3, 1.0], [1e-12, 1e12, 1.0, 1e6], [1e20, 1e30, 1e18, 1.0]])
@each("scale", [1e-10, 1.0, 1e7])
def test_shifts_of_all_orders_overflow_nowhere_in_single_precision(shifts: list[float], scale: float) -> None:
    x = torch.tensor([1.0, 1e-3, 0.0, 2.0]).view(1, 2, 1, 2) * scale
    shift = torch.tensor(shifts).view_as(x) * scale
    expected = over_groups(slow_lasso, x.double(), shift.double())
    for shrink in (group_lasso_, lambda z, s: group_mcp_(z, s, 1e30)):
        z = x.clone()
        shrink(z, shift.clone())
        torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-37)


@every_shape
@each("metric", [False, True])
def test_l1_is_a_soft_threshold(shape: tuple[int, ...], metric: bool) -> None:
    x, shift = problem(shape)
    shift = shift / 3 if metric else torch.full_like(x, 0.5)
    z = x.clone()
    alive = l1_(z, shift.clone() if metric else 0.5)
    assert torch.equal(z, over_groups(slow_l1, x, shift))
    assert torch.equal(alive, x.abs() > shift)


def test_l1_is_zero_at_its_threshold() -> None:
    x = torch.tensor([0.5, -0.5, 0.7, -0.7], dtype=torch.float64).view(1, 1, 4, 1)
    for shift in (0.5, torch.full_like(x, 0.5)):
        z = x.clone()
        assert l1_(z, shift).flatten().tolist() == [False, False, True, True]
        torch.testing.assert_close(z.flatten(), torch.tensor([0, 0, 0.2, -0.2], dtype=torch.float64))


def mcp(size: Tensor, limit: float) -> Tensor:
    """Group MCP over its slope at zero."""
    bent = size.clamp(max=limit)
    return bent - bent.square() / (2 * limit)


def cost(z: Tensor, x: Tensor, shift: Tensor, limit: float) -> Tensor:
    """What the map of group MCP minimises, over the step size; z is (candidates, entries)."""
    return ((x - z).square() / shift).sum(-1) / 2 + mcp(z.norm(dim=-1), limit)


def candidates(x: Tensor) -> Tensor:
    """A grid over the box between zero and x, which holds the minimum."""
    steps = torch.linspace(0, 1, 201 if len(x) == 2 else 31, dtype=torch.float64)
    return torch.cartesian_prod(*[steps] * len(x)).view(-1, len(x)) * x


@each("size", [1, 2, 3])
@each("limit", [0.3, 1.0, 1.7, 3.0])
def test_no_point_is_better_than_where_group_mcp_takes_a_group(size: int, limit: float) -> None:
    kept = 0
    for seed in range(8):
        x, shift = problem((1, 1, 6, size), seed, spread=1.5)
        x *= 3
        z = x.clone()
        group_mcp_(z, shift.clone(), limit)
        kept += int((z == x).all(3).sum())
        for g in range(6):
            found = cost(z[0, 0, g][None], x[0, 0, g], shift[0, 0, g], limit)
            best = cost(candidates(x[0, 0, g]), x[0, 0, g], shift[0, 0, g], limit).min()
            assert float(found) <= float(best) + 1e-12
    assert kept > 0


@pytest.mark.parametrize("ratio", [0.2, 0.99, 1.0, 3.0])
def test_group_mcp_without_metric_is_firm_or_hard_thresholding(ratio: float) -> None:
    limit, shift = 1.0, ratio
    x = torch.linspace(0.01, 3, 300, dtype=torch.float64).view(1, 1, 300, 1)
    plain, metric = x.clone(), x.clone()
    alive = group_mcp_(plain, shift, limit)
    group_mcp_(metric, torch.full_like(x, shift), limit)
    torch.testing.assert_close(metric, plain, rtol=1e-9, atol=1e-12)
    assert torch.equal(alive, plain != 0)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    for z, start in zip(plain.flatten(), x.flatten(), strict=True):
        one = torch.full((1,), shift, dtype=torch.float64)
        best = cost(grid * start, start[None], one, limit).min()
        assert float(cost(z[None, None], start[None], one, limit)) <= float(best) + 1e-12


@every_shape
def test_group_mcp_of_a_distant_limit_is_group_lasso(shape: tuple[int, ...]) -> None:
    x, shift = problem(shape)
    lasso, mcp = x.clone(), x.clone()
    group_lasso_(lasso, shift.clone())
    group_mcp_(mcp, shift.clone(), 1e12)
    torch.testing.assert_close(mcp, lasso, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("limit", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("metric", [False, True])
def test_a_pull_above_one_is_survival(limit: float, metric: bool) -> None:
    for seed in range(10):
        x, shift = problem((1, 3, 12, 2), seed)
        own = shift if metric else 1.5
        for pull, shrink in (
            (lasso_pull(x, own), group_lasso_),
            (mcp_pull(x, own, limit), lambda z, s: group_mcp_(z, s, limit)),
            (proximal.l1_pull(x, own), l1_),
        ):
            alive = shrink(x.clone(), own.clone() if isinstance(own, Tensor) else own)
            assert torch.equal(alive, pull > 1)


@pytest.mark.parametrize("shrink", [group_lasso_, l1_, lambda z, s, m: group_mcp_(z, s, 1.0, m)])
def test_reused_memory_and_gaps_in_memory_change_nothing(shrink) -> None:
    scratch = Reused()
    for shape in ((1, 6, 8, 3), (2, 3, 4, 2), (1, 4, 9, 1)):
        x, shift = problem(shape)
        z, wide = x.clone(), torch.zeros(*shape[:2], shape[2] + 2, shape[3], dtype=x.dtype)
        gaps = wide[:, :, 1:-1]
        gaps.copy_(x)
        shrink(z, shift.clone(), proximal.fresh)
        shrink(gaps, shift.clone(), scratch)
        assert torch.equal(gaps, z)
        assert bool((wide[:, :, [0, -1]] == 0).all())


def test_long_groups_are_summed_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = problem((2, 11, 3, 4))
    whole = norms(x)
    monkeypatch.setattr(proximal, "CACHED", 60)
    torch.testing.assert_close(norms(x), whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 200), (1, 200, 3, 1), (1, 200, 3, 200), (2, 200, 3, 5), (1, 1, 1, 1)], ids=str
)
def test_sums_are_new_tensors_in_which_nan_stays_in_its_group(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0, -1, 0] = torch.nan
    before, found = x.clone(), sums(x)
    torch.testing.assert_close(found, x.sum((1, 3), keepdim=True), rtol=1e-13, atol=0, equal_nan=True)
    found.add_(1)
    assert torch.equal(x.nan_to_num(), before.nan_to_num())
