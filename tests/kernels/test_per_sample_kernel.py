"""The compiled sum of squared gradients is torch's, for any shape."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsemtl.kernels import per_sample
from sparsemtl.kernels.compiled import library

needs_kernel = pytest.mark.skipif(library("per_sample") is None, reason="needs a C++ compiler and ninja")


def oracle(x: Tensor, dy: Tensor, taps: list[tuple[Tensor, Tensor]], groups: int, *, square: bool) -> Tensor:
    """(taps, I / groups, O), in double precision."""
    x, dy = (tensor.double().unflatten(1, (groups, -1)) for tensor in (x, dy))
    total = []
    for read, written in taps:
        gradients = torch.einsum("ngip,ngop->ngio", x[..., read], dy[..., written])
        total.append((gradients.square() if square else gradients.abs()).sum(0).transpose(0, 1).flatten(1))
    return torch.stack(total)


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def some_taps(counts: list[int], inputs: int, outputs: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(inputs, (count,), generator=generator),
            torch.randint(outputs, (count,), generator=generator),
        )
        for count in counts
    ]


@needs_kernel
@settings(deadline=None)
@given(
    samples=st.integers(0, 70),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 19),
    outputs=st.integers(1, 70),
    counts=st.lists(st.integers(0, 140), min_size=1, max_size=10),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    square=st.booleans(),
    packed=st.sampled_from([1, 2**14, per_sample._PACKED]),
)
def test_any_shape_gives_what_torch_gives(
    samples: int,
    groups: int,
    inputs: int,
    outputs: int,
    counts: list[int],
    dtype: torch.dtype,
    square: bool,
    packed: int,
) -> None:
    x, dy = random((samples, groups * inputs, 23), dtype), random((samples, groups * outputs, 17), dtype)
    taps = some_taps(counts, 23, 17)
    total = torch.ones(len(taps), inputs, groups * outputs, dtype=dtype)
    assert per_sample.takes(total, x, dy)
    with mock.patch.object(per_sample, "_PACKED", packed):
        assert per_sample.add_products(total, x, dy, per_sample.Taps(taps), groups, square=square)
    truth = oracle(x, dy, taps, groups, square=square) + 1
    error = float((total.double() - truth).abs().max() / truth.max())
    assert error < (5e-7 if dtype == torch.float32 else 1e-14)


@needs_kernel
@pytest.mark.parametrize("square", [True, False])
def test_threads_do_not_change_a_bit(square: bool) -> None:
    x, dy, taps = random((9, 24, 23)), random((9, 70, 17)), per_sample.Taps(some_taps([17, 3, 0, 9], 23, 17))
    threads, totals = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            totals.append(torch.zeros(4, 24, 70, dtype=torch.float64))
            per_sample.add_products(totals[-1], x, dy, taps, 1, square=square)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(total, totals[0]) for total in totals)


@needs_kernel
def test_views_are_read_as_what_they_show() -> None:
    x, dy, taps = random((5, 16, 23)), random((5, 40, 17)), some_taps([17, 4], 23, 17)
    views = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (x, dy)]
    views[0] = torch.stack([views[0], views[0]], 3)[..., 1]
    totals = [torch.zeros(2, 16, 40, dtype=torch.float64) for _ in range(2)]
    per_sample.add_products(totals[0], x, dy, per_sample.Taps(taps), 1, square=True)
    per_sample.add_products(totals[1], *views, per_sample.Taps(taps), 1, square=True)
    assert torch.equal(*totals)


@needs_kernel
def test_value_that_is_not_finite_reaches_only_its_own_weights() -> None:
    x, dy, taps = random((5, 16, 23)), random((5, 40, 17)), some_taps([17], 23, 17)
    dy[2, 7, int(taps[0][1][0])] = torch.nan
    total = torch.zeros(1, 16, 40, dtype=torch.float64)
    per_sample.add_products(total, x, dy, per_sample.Taps(taps), 1, square=True)
    assert total[..., 7].isnan().all()
    assert not torch.cat([total[..., :7], total[..., 8:]], 2).isnan().any()


class Subclass(Tensor):
    """A tensor that computes something of its own."""


@pytest.mark.parametrize(
    "change",
    [
        lambda total, x, dy: (total.half(), x.half(), dy.half()),
        lambda total, x, dy: (total, x.double(), dy),
        lambda total, x, dy: (total.to("meta"), x.to("meta"), dy.to("meta")),
        lambda total, x, dy: (total, x.as_subclass(Subclass), dy),
        lambda total, x, dy: (total.transpose(1, 2), x, dy),
        lambda total, x, dy: (total, torch._neg_view(x), dy),
    ],
    ids=["half", "mixed", "device", "subclass", "layout", "negated view"],
)
def test_tensors_that_are_left_to_torch(change: Any) -> None:
    tensors = torch.zeros(1, 3, 2), torch.zeros(4, 3, 5), torch.zeros(4, 2, 5)
    assert per_sample.takes(*tensors)
    assert not per_sample.takes(*change(*tensors))


def test_without_a_kernel_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    total = torch.zeros(1, 3, 2)
    taps = per_sample.Taps(some_taps([4], 5, 5))
    assert not per_sample.add_products(total, torch.ones(4, 3, 5), torch.ones(4, 2, 5), taps, 1, square=True)
    assert not total.any()
