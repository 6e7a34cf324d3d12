"""Pools are those of Algorithm 1, and correlations those of Pearson where labels are single numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import each
from torch import Tensor

from sparsemtl import Classification, MultiLabel, Regression, Segmentation
from sparsemtl.architectures.pools import Pools, build_pools, given_pools, label_correlations
from sparsemtl.errors import LabelError, ParameterError

GRADES = ["G1", "G2", "G3"]
MATHS = (0.8521, 0.8015, 0.9049)
PORTUGUESE = (0.8650, 0.8263, 0.9185)
THREE, TWO, ONE = ("12", "13", "23"), ("123", "23"), ("123",)


def matrix_of(first: float, second: float, third: float) -> Tensor:
    return torch.tensor([[1, first, second], [first, 1, third], [second, third, 1]], dtype=torch.float64)


@each(
    ("correlations", "alpha", "expected"),
    [
        (MATHS, 0.035, THREE),
        (MATHS, 0.04, THREE),
        (MATHS, 0.05, THREE),
        (MATHS, 0.051, TWO),
        (MATHS, 0.0520, TWO),
        (MATHS, 0.053, ONE),
        (PORTUGUESE, 0.035, THREE),
        (PORTUGUESE, 0.038, THREE),
        (PORTUGUESE, 0.04, TWO),
        (PORTUGUESE, 0.048, TWO),
        (PORTUGUESE, 0.05, ONE),
        (PORTUGUESE, 0.053, ONE),
    ],
)
def test_the_students_grades_give_the_pools_worked_out_by_hand(
    correlations: tuple[float, float, float], alpha: float, expected: tuple[str, ...]
) -> None:
    pools = build_pools(matrix_of(*correlations), alpha, GRADES)
    assert tuple("".join(task[1] for task in pool) for pool in pools) == expected


def test_a_difference_of_exactly_alpha_opens_a_pool() -> None:
    correlations = matrix_of(0.5, 0.75, 0.625)
    assert len(build_pools(correlations, 0.25, GRADES)) > 1
    assert list(build_pools(correlations, 0.2501, GRADES)) == [("G1", "G2", "G3")]


def test_the_factor_is_the_mean_over_all_pairs_of_the_pool() -> None:
    pools = build_pools(matrix_of(*MATHS), 0.0515, GRADES)
    assert pools.factors == pytest.approx([sum(MATHS) / 3, 0.9049])


def test_negative_correlations_are_as_good() -> None:
    pools = build_pools(matrix_of(-0.5, -0.52, 0.9), 0.1, GRADES)
    assert list(pools) == [("G1", "G2", "G3"), ("G2", "G3")]


def test_one_task_has_no_pool_and_two_have_one() -> None:
    assert list(build_pools([[1.0]], 0.1, ["a"])) == []
    assert list(build_pools([[1, -0.3], [-0.3, 1]], 1e-9, ["a", "b"])) == [("a", "b")]


def slowly(matrix: list[list[float]], alpha: float) -> list[list[int]]:
    """Algorithm 1, word by word, with numpy."""
    pools: list[list[int]] = []
    count = len(matrix)
    for i in range(count):
        for j in range(i + 1, count):
            taken = False
            for pool in pools:
                block = np.array(matrix)[np.ix_(pool, pool)]
                if abs(block[np.triu_indices(len(pool), 1)].mean() - matrix[i][j]) < alpha:
                    pool[:] = sorted({*pool, i, j})
                    taken = True
                    break
            if not taken:
                pools.append([i, j])
    return pools


@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0.01, 1.5))
def test_pools_are_those_of_the_algorithm_written_out(count: int, seed: int, alpha: float) -> None:
    half = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    matrix = half.triu(1) + half.triu(1).T + torch.eye(count, dtype=torch.float64)
    names = [f"t{number}" for number in range(count)]
    pools = build_pools(matrix, alpha, names)
    assert [[names.index(task) for task in pool] for pool in pools] == slowly(matrix.tolist(), alpha)
    assert list(build_pools(matrix, alpha, names)) == list(pools)
    pairs = {frozenset((a, b)) for pool in pools for a in pool for b in pool if a != b}
    assert len(pairs) == count * (count - 1) // 2  # every pair is together somewhere


@pytest.mark.parametrize(
    ("correlations", "alpha", "message"),
    [
        ([[1.0]], 0.1, r"3 tasks need a correlation matrix of shape \(3, 3\), got \(1, 1\)"),
        (torch.eye(3), 0.0, "`alpha` must be above 0, got 0.0"),
        (torch.full((3, 3), torch.nan), 0.1, "must be numbers, found NaN"),
    ],
)
def test_a_wrong_matrix_or_alpha_is_refused(correlations: Tensor, alpha: float, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build_pools(correlations, alpha, GRADES)


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ([["G1", "G4"]], r"pool 1: unknown task 'G4'\. Did you mean"),
        ([["G1", "G2"], ["G3"]], r"pool 2 must have two or more different tasks, got \['G3'\]"),
        ([["G1", "G1"]], "pool 1 must have two or more different tasks"),
    ],
)
def test_wrong_pools_are_refused(pools: list[list[str]], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        given_pools(pools, GRADES)


def test_pools_are_a_sequence_and_a_table() -> None:
    pools = Pools([["a", "b"], ["b", "c"]], [0.5, -0.25])
    assert pools[1] == ("b", "c")
    assert pools.members == {"pool1": ("a", "b"), "pool2": ("b", "c")}
    assert str(pools).splitlines() == ["pool      SMF  tasks", "pool1   0.500  a, b", "pool2  -0.250  b, c"]


# ---- correlations --------------------------------------------------------------------------------------------------


def labels(count: int = 50) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return {
        "real": x[:, 0],
        "yes": (x[:, 0] + x[:, 1] > 0).long(),
        "kind": x[:, :3].argmax(1),
        "marks": (x[:, 1:3] > 0).float(),
        "pair": x[:, 2:4],
    }


def tasks() -> list[Classification | MultiLabel | Regression]:
    return [
        Regression("real"),
        Classification("yes", 2),
        Classification("kind", 3),
        MultiLabel("marks", 2),
        Regression("pair", 2),
    ]


def test_single_numbers_correlate_as_pearson_says() -> None:
    known = labels()
    found = label_correlations(tasks()[:2], known)
    expected = np.corrcoef(known["real"].double().numpy(), known["yes"].double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    known["yes"] = 1 - known["yes"]
    assert torch.allclose(label_correlations(tasks()[:2], known)[0, 1], -found[0, 1])


def test_classes_and_a_real_value_correlate_as_the_correlation_ratio() -> None:
    known = labels()
    value, kind = known["real"].double().numpy(), known["kind"].numpy()
    between = sum((kind == k).sum() * (value[kind == k].mean() - value.mean()) ** 2 for k in range(3))
    ratio = (between / ((value - value.mean()) ** 2).sum()) ** 0.5
    found = label_correlations([tasks()[0], tasks()[2]], known)
    assert float(found[0, 1]) == pytest.approx(ratio, abs=1e-12)


def test_no_combination_of_several_numbers_correlates_more_than_is_said() -> None:
    known = labels()
    found = float(label_correlations(tasks()[3:], known)[0, 1])
    a, b = known["marks"].double(), known["pair"].double()
    best = 0.0
    for angle in np.linspace(0, np.pi, 181):
        left = a @ torch.tensor([np.cos(angle), np.sin(angle)])
        fit = np.linalg.lstsq(np.c_[b, np.ones(len(b))], left.numpy(), rcond=None)[0]
        best = max(best, abs(np.corrcoef(left.numpy(), np.c_[b, np.ones(len(b))] @ fit)[0, 1]))
    assert found == pytest.approx(best, abs=1e-3)


def test_a_matrix_is_symmetric_with_ones_and_within_bounds() -> None:
    found = label_correlations(tasks(), labels())
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.ones(5, dtype=torch.float64))
    assert float(found.abs().max()) <= 1


def test_samples_without_a_label_of_either_task_are_left_out() -> None:
    known = labels()
    missing = {name: label.double().clone() for name, label in known.items()}
    missing["real"][:10] = torch.nan
    missing["kind"][5:15] = -100
    missing["marks"][20:25, 1] = torch.nan
    chosen = [tasks()[0], tasks()[2], tasks()[3]]
    found = label_correlations(chosen, missing)
    keep = torch.ones(50, dtype=torch.bool)
    keep[:15] = False
    some = {name: label[keep] for name, label in known.items()}
    assert torch.allclose(found[0, 1], label_correlations(chosen[:2], some)[0, 1])
    assert not torch.allclose(found[0, 1], label_correlations(chosen[:2], known)[0, 1])


def test_a_class_that_never_occurs_changes_nothing() -> None:
    known = labels()
    rest = [tasks()[0]]
    wider = label_correlations([*rest, Classification("kind", 7)], known)
    torch.testing.assert_close(wider, label_correlations([*rest, Classification("kind", 3)], known))


def test_labels_that_are_all_alike_have_no_correlation() -> None:
    known = {**labels(), "yes": torch.ones(50).long(), "real": torch.full((50,), 0.1)}
    with pytest.raises(
        LabelError, match="task 'yes': all labels are equal on the samples that are labelled for 'kind'"
    ):
        label_correlations(tasks()[1:3], known)
    with pytest.raises(LabelError, match="task 'real': all labels are equal"):
        label_correlations([tasks()[0], tasks()[2]], known)


def test_labels_of_different_samples_have_no_correlation() -> None:
    known = {**labels(), "real": torch.randn(7)}
    with pytest.raises(LabelError, match="same samples for all tasks, found real 7, yes 50"):
        label_correlations(tasks()[:2], known)
    never = {"real": torch.tensor([1.0, torch.nan]), "yes": torch.tensor([-100, 1])}
    with pytest.raises(LabelError, match="no sample that is labelled for both"):
        label_correlations(tasks()[:2], never)


def test_maps_are_refused() -> None:
    with pytest.raises(ParameterError, match="labels of a Segmentation are not numbers"):
        label_correlations([Regression("real"), Segmentation("map", 3)], labels())
