"""Rows of gradients are those of the parameters, in memory that is used again."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation as aggregation
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.errors import NonFiniteError, TrainingError
from sparsemtl.storage.tensor_checks import is_finite
from sparsemtl.training.steps.finite import check_rows
from sparsemtl.training.steps.gradient_rows import GradientRows
from sparsemtl.training.steps.step import TrainingStep

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]


def put_gradients(of: list[nn.Parameter], seed: int, *, without: int | None = None) -> Tensor:
    """Set gradients, and return them as one vector."""
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(of):
        p.grad = None if i == without else torch.randn(p.shape, generator=generator).to(p.dtype)
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in of])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_the_gradients_and_zero_for_tasks_without_one(dtype: torch.dtype) -> None:
    of = parameters(dtype)
    rows = GradientRows(of, "abc")
    for step, present in enumerate(["abc", "ac", "b", "cba", "a"]):
        rows.present.clear()
        expected = dict.fromkeys("abc", torch.zeros(sum(p.numel() for p in of), dtype=dtype))
        for i, task in enumerate(present):
            expected[task] = put_gradients(of, 10 * step + i, without=i)
            rows.add(task)
        assert rows.present == set(present)
        exact = torch.promote_types(dtype, torch.float32)
        assert torch.equal(rows.matrix(), torch.stack(list(expected.values())).to(exact))


def test_gradients_of_several_batches_add_up_in_the_type_of_the_weights() -> None:
    of = parameters(torch.bfloat16)
    rows = GradientRows(of, "ab")
    total = put_gradients(of, 0)
    rows.add("b")
    for seed in (1, 2):
        total = total + put_gradients(of, seed)
        rows.add("b")
    assert torch.equal(rows.matrix(), torch.stack([torch.zeros_like(total), total]).float())


def test_memory_is_used_again_unless_the_weights_changed_their_type() -> None:
    of = parameters()
    rows = GradientRows(of, "ab")
    places = []
    for _ in range(2):
        rows.present.clear()
        put_gradients(of, 0)
        rows.add("a")
        places.append(rows.matrix().data_ptr())
    assert places[0] == places[1]
    for p in of:
        p.data = p.data.double()
        p.grad = None
    rows.present.clear()
    expected = put_gradients(of, 3)
    rows.add("b")
    assert torch.equal(rows.matrix(), torch.stack([torch.zeros_like(expected), expected]))


def test_a_combination_goes_back_to_the_parameters_in_their_shapes_and_types() -> None:
    of = parameters(torch.bfloat16)
    combined = torch.randn(sum(p.numel() for p in of))
    GradientRows(of, "a").set_gradients(combined)
    assert all(p.grad is not None and p.grad.dtype == p.dtype and p.grad.shape == p.shape for p in of)
    assert torch.equal(torch.cat([p.grad.flatten() for p in of if p.grad is not None]), combined.bfloat16())


def test_rows_whose_sum_overflows_are_finite() -> None:
    assert is_finite(torch.full((2, 4), torch.finfo(torch.float32).max))
    check_rows(torch.full((2, 4), torch.finfo(torch.float32).max), "ab")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_tasks_whose_rows_are_not_finite_are_named(value: float) -> None:
    rows = torch.ones(3, 4)
    rows[1, 2] = value
    assert not is_finite(rows)
    with pytest.raises(NonFiniteError, match="gradient of task 'b' with respect to the shared weights"):
        check_rows(rows, "abc")
    rows[2] = torch.tensor([torch.inf, -torch.inf, 1.0, 1.0])
    with pytest.raises(NonFiniteError, match="gradient of tasks 'b', 'c' with"):
        check_rows(rows, "abc")


class KeepsRows(aggregation.Aggregator):
    """A user's own aggregator, which holds on to what it got and returns a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, matrix: Tensor, /) -> Tensor:
        self.seen.append(matrix)
        return matrix[1]


def test_rows_that_an_aggregator_of_a_user_keeps_stay_as_they_were() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    model = sm.SharedBottom(encoder, [sm.Regression("a"), sm.Regression("b")])
    keeps = KeepsRows()
    x, labels = torch.randn(5, 4), {"a": torch.randn(5), "b": torch.randn(5)}
    model(x)
    networks = sm.DenseSharing().start(model)
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), networks, balancing=keeps)
    step(x, labels)
    first = keeps.seen[0].clone()
    gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    assert torch.equal(gradient, first[1])
    step(x, labels)
    assert torch.equal(keeps.seen[0], first)
    assert not torch.equal(keeps.seen[1], first)


def test_rows_that_do_not_fit_into_memory_name_the_options_that_do() -> None:
    huge = torch.zeros(1).expand(10**12)  # one number in memory
    size = r"gradients of 3 tasks .* 1,000,000,000,000 shared weights take 11,175.9 GiB.*gradients: gramian"
    rows = GradientRows([], ["a", "b", "c"])
    with pytest.raises(TrainingError, match=size):
        rows._fit([huge])
