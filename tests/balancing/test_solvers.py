"""Weights that are solved for are the optimum of their definition, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torchjd.aggregation as aggregation
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsemtl.balancing import BALANCERS, as_balancer
from sparsemtl.balancing.solvers import Array, cagrad_weights, min_norm_weights, nash_weights

CPU = torch.device("cpu")


@st.composite
def gradients(draw: Any, *, tasks: tuple[int, int] = (1, 8)) -> Array:
    """Gradients (T, P): of any rank, with repeated and zero rows, some of very different lengths."""
    count = draw(st.integers(*tasks))
    rank = draw(st.integers(1, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.normal(size=(count, rank)) + draw(st.sampled_from([0.0, 0.3, 2.0])) * rng.normal(size=rank)
    if draw(st.booleans()):
        rows = rows.round()
    if draw(st.booleans()):
        rows *= 10.0 ** rng.uniform(-3, 3, size=(count, 1))
    if count > 1 and draw(st.booleans()):
        rows[rng.integers(count)] = rows[rng.integers(count)]
    if draw(st.integers(0, 9)) == 0:
        rows[rng.integers(count)] = 0.0
    return rows


def faces(tasks: int) -> Iterator[list[int]]:
    for size in range(1, tasks + 1):
        yield from map(list, combinations(range(tasks), size))


def on_simplex(weights: Array) -> bool:
    return bool((weights >= 0).all()) and abs(weights.sum() - 1) < 1e-12


def shortest_by_faces(rows: Array) -> float:
    """The length of the shortest vector of the convex hull: the best of all faces' own."""
    best = np.inf
    for face in faces(len(rows)):
        base, others = rows[face[0]], rows[face[1:]] - rows[face[0]]
        part = np.linalg.lstsq(others.T, -base, rcond=None)[0] if len(face) > 1 else np.zeros(0)
        if (part >= -1e-12).all() and part.sum() <= 1 + 1e-12:
            best = min(best, float(np.linalg.norm(base + part @ others)))
    return best


# ---- MGDA ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(gradients(tasks=(1, 6)))
def test_no_vector_of_the_hull_is_shorter_than_that_of_mgda(rows: Array) -> None:
    weights = min_norm_weights(rows @ rows.T)
    assert on_simplex(weights)
    length, expected = np.linalg.norm(weights @ rows), shortest_by_faces(rows)
    assert abs(length - expected) <= 1e-7 * np.linalg.norm(rows, axis=1).max()  # a root of the rounding of squares
    assert length**2 <= expected**2 + 1e-13 * float(np.square(rows).sum(1).max())


@settings(deadline=None)
@given(gradients(tasks=(1, 20)))
def test_no_task_loses_more_than_the_length_of_mgda(rows: Array) -> None:
    """The condition of optimality: <v, g> >= ||v||^2 for every gradient."""
    gramian = rows @ rows.T
    weights = min_norm_weights(gramian)
    slopes = gramian @ weights
    rounding = 1e-12 * (np.abs(rows) @ np.abs(rows).T @ weights)  # also of products that cancel
    assert (slopes >= weights @ slopes - rounding - weights @ rounding).all()


def test_the_min_norm_of_two_gradients_is_the_closed_form() -> None:
    for seed in range(50):
        one, other = np.random.default_rng(seed).normal(size=(2, 3)) + 0.5
        share = np.clip((other - one) @ other / ((one - other) @ (one - other)), 0, 1)
        rows = np.stack([one, other])
        np.testing.assert_allclose(min_norm_weights(rows @ rows.T), [share, 1 - share], rtol=0, atol=1e-13)


def test_orthogonal_gradients_of_one_length_weigh_the_same_and_a_zero_gradient_all() -> None:
    np.testing.assert_allclose(min_norm_weights(np.eye(7) * 4.0), np.full(7, 1 / 7), rtol=1e-14)
    assert min_norm_weights(np.diag([3.0, 0.0, 2.0])).tolist() == [0, 1, 0]
    assert on_simplex(min_norm_weights(np.zeros((3, 3))))


def test_many_tasks_end_soon() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 10)) + 0.5
    assert on_simplex(min_norm_weights(rows @ rows.T))


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_mgda_is_torchjds_to_the_tolerance_of_its_solver(tasks: int) -> None:
    rows = torch.randn(tasks, 9, generator=torch.Generator().manual_seed(tasks))
    solver = aggregation.MGDA(epsilon=1e-6, max_iters=20_000)
    torch.testing.assert_close(combined("mgda", rows), solver(rows), rtol=0, atol=2e-3)


# ---- CAGrad --------------------------------------------------------------------------------------------------------


def cagrad_value(rows: Array, w: Array, c: float) -> float:
    mean = rows.mean(0)
    return float(w @ rows @ mean + c * np.linalg.norm(mean) * np.linalg.norm(w @ rows))


def simplex_of(rows: Array, c: float) -> Array:
    """The weights on the simplex in those of CAGrad."""
    rest = cagrad_weights(rows @ rows.T, c) - 1 / len(rows)
    return rest / rest.sum()


@settings(deadline=None)
@given(gradients(tasks=(2, 8)), st.sampled_from([1e-3, 0.4, 0.5, 1.0, 3.0]))
def test_cagrad_meets_the_conditions_of_optimality(rows: Array, c: float) -> None:
    weights = cagrad_weights(rows @ rows.T, c)
    whole = np.linalg.norm(rows)
    assume(np.linalg.norm(rows.mean(0)) > 1e-6 * whole)
    if not weights.any():  # (nearly) Pareto stationary
        assert shortest_by_faces(rows) < 1e-4 * whole
        return
    w, mean = simplex_of(rows, c), rows.mean(0)
    assert (w >= -1e-12).all()
    direction = weights @ rows - mean
    assert np.linalg.norm(direction) == pytest.approx(c * np.linalg.norm(mean), rel=1e-6)
    slopes = rows @ (mean + direction)  # of the convex function, which are equal where w is above zero, and least
    size = np.linalg.norm(rows, axis=1) * (1 + c) * np.linalg.norm(mean)
    lowest = slopes.min()
    assert (slopes - lowest <= 1e-6 * size + 1e-9 * size.max())[w > 1e-9].all()


@settings(deadline=None)
@given(gradients(tasks=(2, 5)), st.sampled_from([0.4, 1.0]), st.integers(0, 999))
def test_no_point_of_the_simplex_is_better_for_cagrad(rows: Array, c: float, seed: int) -> None:
    weights = cagrad_weights(rows @ rows.T, c)
    assume(weights.any() and np.linalg.norm(rows.mean(0)) > 1e-6 * np.linalg.norm(rows))
    rng, w = np.random.default_rng(seed), simplex_of(rows, c)
    found = cagrad_value(rows, w, c)
    tolerance = 1e-11 * float(np.square(rows).sum())
    for _ in range(100):
        other = rng.dirichlet(np.full(len(rows), rng.choice([0.1, 1.0])))
        near = w + rng.choice([1e-4, 1e-2]) * (other - w)
        assert found <= cagrad_value(rows, other, c) + tolerance
        assert found <= cagrad_value(rows, near, c) + tolerance


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_cagrad_is_that_of_a_general_solver(tasks: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    for seed in range(10):
        rows = np.random.default_rng(seed).normal(size=(tasks, 6)) + 0.4
        start = np.full(tasks, 1 / tasks)
        found = optimize.minimize(
            lambda w, rows=rows: cagrad_value(rows, w, 0.5),
            start,
            bounds=[(0, 1)] * tasks,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(simplex_of(rows, 0.5), found.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_cagrad_is_torchjds(tasks: int) -> None:
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    rows = torch.randn(tasks, 9, generator=torch.Generator().manual_seed(tasks))
    torch.testing.assert_close(combined("cagrad", rows, c=0.4), aggregation.CAGrad(0.4)(rows), rtol=0, atol=1e-3)


def test_cagrad_without_a_ball_is_the_mean() -> None:
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(combined("cagrad", rows, c=0.0), rows.mean(0))
    assert not combined("cagrad", torch.zeros(3, 5)).any()


def test_cagrad_takes_no_step_from_a_pareto_stationary_point() -> None:
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert not combined("cagrad", rows, c=2.0).any()
    assert combined("cagrad", rows, c=0.5).tolist() == [-0.25, 0.0]  # the ball is too small for zero


# ---- Nash-MTL ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(gradients())
def test_nash_weights_are_the_inverse_of_what_the_tasks_gain(rows: Array) -> None:
    gramian = rows @ rows.T
    lengths = np.linalg.norm(rows, axis=1)
    assume((lengths > 0).all() and len(rows) > 1)
    assume(shortest_by_faces(rows / lengths[:, None]) > 1e-2)
    weights = nash_weights(gramian, 1e-16)
    np.testing.assert_allclose(weights * (gramian @ weights), 1.0, rtol=1e-8)


@settings(deadline=None)
@given(gradients(tasks=(2, 6)), st.sampled_from([1e-7, 1e-16]))
def test_nash_ends_for_any_gradients(rows: Array, rounding: float) -> None:
    weights = nash_weights(rows @ rows.T, rounding)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert np.linalg.norm(weights @ rows) <= np.sqrt(len(rows)) * (1 + 1e-6)
    assert not weights[np.linalg.norm(rows, axis=1) == 0].any() or len(rows) == 1


def test_a_bargain_does_not_depend_on_the_scale_of_a_loss() -> None:
    rows = np.random.default_rng(1).normal(size=(3, 8)) + 0.3
    scaled = rows * np.array([[1.0], [1e3], [1e-3]])
    one, other = (nash_weights(r @ r.T, 1e-16) @ r for r in (rows, scaled))
    np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_a_bargain_is_no_longer_than_asked(max_norm: float) -> None:
    rows = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    norm = float(combined("nash-mtl", rows, max_norm=max_norm).norm())
    assert norm == pytest.approx(0.5 if max_norm == 0.5 else 3**0.5, rel=1e-5)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_nash_mtl_is_torchjds(tasks: int) -> None:
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")
    rows = torch.randn(tasks, 9, generator=torch.Generator().manual_seed(tasks))
    torch.testing.assert_close(combined("nash-mtl", rows), aggregation.NashMTL(tasks)(rows), rtol=0, atol=5e-3)


# ---- in a balancer -------------------------------------------------------------------------------------------------


def combined(name: str, rows: torch.Tensor, **parameters: float) -> torch.Tensor:
    balancer = BALANCERS.build(name, **parameters)
    balancer.attach(len(rows), CPU)
    return balancer.aggregate(rows)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "nash-mtl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_the_tasks_does_not_matter(name: str, dtype: torch.dtype) -> None:
    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(2), dtype=dtype)
    order = torch.tensor([2, 0, 3, 1])
    found = combined(name, rows)
    assert found.dtype == dtype
    torch.testing.assert_close(combined(name, rows[order]), found)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "nash-mtl"])
def test_a_single_gradient_stays_as_it_is(name: str) -> None:
    row = torch.tensor([[0.3, -0.4]])
    assert torch.equal(combined(name, row), row[0])


def test_a_state_of_torchjds_solver_is_accepted() -> None:
    """Runs of earlier versions, whose solver had a tolerance, resume."""
    old, new = as_balancer(aggregation.MGDA(1e-6, 1000)), BALANCERS.build("mgda")
    rows = torch.randn(3, 5)
    for balancer in (old, new):
        balancer.attach(3, CPU)
    expected = new.aggregate(rows)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.aggregate(rows), expected)
