"""The compiled maps of group lasso against torch's path; skipped where nothing can be compiled."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

from sparsemtl.kernels import group_lasso
from sparsemtl.kernels.compiled import library
from sparsemtl.optim import GroupLasso, ProximalAdamW, ProximalStep
from sparsemtl.optim.proximal import group_lasso_, lasso_pull, norms

SHAPES = [(1, 1, 5, 7), (1, 6, 5, 1), (2, 3, 4, 2), (3, 2, 1, 70), (1, 1, 1, 1), (1, 300, 70, 9), (5, 1, 1, 3000)]
every_shape = each("shape", SHAPES)
EPS = 1e-3


@pytest.fixture(autouse=True)
def compiled() -> None:
    if library("group_lasso") is None:
        pytest.skip("no compiler")


def problem(shape: tuple[int, ...], spread: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Entries, and second moments whose roots lie e^spread apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    moment = (2 * spread * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()
    return x.to(dtype), moment.to(dtype)


def shift_of(moment: Tensor, tau: float) -> Tensor:
    return tau / (moment.double().sqrt() + EPS)


def taus(x: Tensor, moment: Tensor) -> Iterator[float]:
    """Steps at which some, about half, and most of the groups vanish, none of them at its threshold."""
    pulls = norms(x.double() / shift_of(moment, 1.0)).flatten().sort().values
    if len(pulls) == 1:
        yield 0.7 * float(pulls)
        return
    for fraction in (0.1, 0.5, 0.9):
        place = max(1, int(fraction * len(pulls)))
        yield float(pulls[place - 1] + pulls[place]) / 2


@every_shape
@each("spread", [0.0, 1.0, 3.0])
def test_the_map_in_double_precision_is_that_of_torch(shape: tuple[int, ...], spread: float) -> None:
    x, moment = problem(shape, spread)
    for tau in taus(x, moment):
        own, expected = x.clone(), x.clone()
        alive = group_lasso.shrink_(own, moment, tau, EPS)
        assert torch.equal(alive, group_lasso_(expected, shift_of(moment, tau)))
        assert float((norms(own - expected) / norms(x)).max()) < 1e-12


@every_shape
@each("spread", [0.0, 1.0, 3.0])
def test_in_single_precision_survivors_are_optimal_to_half_a_millionth(shape: tuple[int, ...], spread: float) -> None:
    x, moment = problem(shape, spread, torch.float32)
    for tau in taus(x, moment):
        own = x.clone()
        alive = group_lasso.shrink_(own, moment, tau, EPS)
        assert torch.equal(alive, lasso_pull(x.double(), shift_of(moment, tau)) > 1)
        assert torch.equal(alive, norms(own) > 0)
        z, pulled = own.double(), x.double() / shift_of(moment, tau)
        force = (z - x) / shift_of(moment, tau) + z / norms(z)
        assert float(torch.where(alive, norms(force) / norms(pulled), 0.0).max()) < 5e-7


@every_shape
@each("dtype", [torch.float32, torch.float64])
def test_the_plain_map_is_that_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, _ = problem(shape, 1.0, dtype)
    x[:, :, 0] = 0.0
    sizes = norms(x.double()).flatten()
    for tau in (0.3 * float(sizes.max()), float(sizes.mean())):
        own, expected = x.clone(), x.double()
        alive = group_lasso.shrink_(own, None, tau, 0.0)
        assert torch.equal(alive, group_lasso_(expected, tau))
        tolerance = 5e-7 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(own.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_threshold_of_the_plain_map_is_exact_and_nan_stays() -> None:
    for tau, alive in ((5.0, False), (math.nextafter(5.0, 6), False), (math.nextafter(5.0, 4), True)):
        x = torch.tensor([3.0, 4.0, torch.nan, 1.0]).view(1, 1, 2, 2)
        found = group_lasso.shrink_(x, None, tau, 0.0)
        assert found.flatten().tolist() == [alive, True]
        assert bool((x[0, 0, 0] != 0).all()) == alive
        assert bool(x[0, 0, 1].isnan().all())


@every_shape
@each("dtype", [torch.float32, torch.float64])
def test_the_pull_is_that_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, moment = problem(shape, 1.0, dtype)
    pull = group_lasso.pull(x, moment, 0.3, EPS)
    tolerance = 5e-7 if dtype == torch.float32 else 1e-12
    expected = lasso_pull(x.double(), shift_of(moment, 0.3)).to(dtype)
    torch.testing.assert_close(pull, expected, rtol=tolerance, atol=0)


def test_nan_zeros_and_entries_without_a_metric() -> None:
    x, moment = torch.ones(1, 4, 5, 1, dtype=torch.float64), torch.ones(1, 4, 5, 1, dtype=torch.float64)
    x[0, 1, 0], x[:, :, 1], moment[:, :, 2], moment[0, 0, 3] = torch.nan, 0.0, 0.0, 0.0
    own, expected = x.clone(), x.clone()
    alive = group_lasso.shrink_(own, moment, 0.1, 0.0)
    assert alive.flatten().tolist() == [True, False, False, True, True]
    group_lasso_(expected, 0.1 / moment.sqrt())
    torch.testing.assert_close(own, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_the_number_of_threads_changes_no_bit() -> None:
    x, moment = problem((1, 300, 700, 9), dtype=torch.float32)
    tau, before, found = next(taus(x, moment)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(x.clone())
            group_lasso.shrink_(found[-1], moment, tau, EPS)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_entries_between_the_groups_of_a_slice_stay() -> None:
    wide, moments = problem((2, 3, 9, 4))
    before = wide.clone()
    x, moment = wide[:, :, 2:7], moments[:, :, 2:7]
    expected = x.clone()
    group_lasso.shrink_(x, moment, 0.5, EPS)
    group_lasso_(expected, shift_of(moment, 0.5))
    torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-13)
    assert torch.equal(wide[:, :, :2], before[:, :, :2])
    assert torch.equal(wide[:, :, 7:], before[:, :, 7:])


def test_other_tensors_are_left_to_torch() -> None:
    x, moment = problem((2, 3, 4, 5))
    last = x.transpose(2, 3).contiguous().transpose(2, 3)
    for one, other in (
        (x.bfloat16(), moment.bfloat16()),
        (x, moment.float()),
        (x[..., ::2], moment[..., ::2]),
        (last, moment),
        (nn.Parameter(x), moment),
        (x[:0], moment[:0]),
    ):
        assert not group_lasso.takes(one, other)
    assert group_lasso.takes(x, moment)
    assert group_lasso.takes(x, None)


@each(("adaptive", "keep_min"), [(True, 0), (True, 2), (False, 0), (False, 2)])
@each("granularity", ["input-channel", "output-channel", "block", "weight"])
@each("layout", [torch.contiguous_format, torch.channels_last])
@each("dtype", [torch.float32, torch.float64])
def test_a_step_with_the_kernel_is_one_without(
    granularity: Any,
    layout: torch.memory_format,
    dtype: torch.dtype,
    adaptive: bool,
    keep_min: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(5, 9, 3), nn.Tanh(), nn.Conv2d(9, 6, 1)).to(dtype).to(memory_format=layout)
        penalty = GroupLasso(strength=2e-3, granularity=granularity, keep_min=keep_min)
        optimizer = ProximalAdamW(model.parameters(), lr=1e-2, eps=1e-3, penalty=penalty, adaptive=adaptive)
        images = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
        return model, ProximalStep(penalty).critical_strength(optimizer, model.named_parameters())

    model, critical = trained()
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    general, expected = trained()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(dict(model.state_dict()), dict(general.state_dict()), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(critical, expected, rtol=tolerance * 10, atol=0)


def test_a_penalty_with_a_map_of_its_own_does_not_use_the_kernel() -> None:
    class Halved(GroupLasso):
        def shrink_(self, x: Tensor, *_: Any) -> Tensor:
            return x.mul_(0.5).sum((1, 3), keepdim=True) != 0

    layer = nn.Conv2d(3, 4, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-9)
    layer(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(layer.weight.detach())
    ProximalStep(Halved(strength=1.0))(optimizer, layer.named_parameters())
    assert torch.equal(layer.weight, before * 0.5)
