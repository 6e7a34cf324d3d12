"""Per-sample gradients of convolutions of any geometry equal autograd's."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loops import each
from torch import Tensor, nn

from sparsemtl.criteria import per_sample_layers
from sparsemtl.criteria.per_sample_layers import add_kernel, zeros_for_kernel
from sparsemtl.criteria.power_sum import PowerSum
from sparsemtl.kernels.compiled import library

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POWERS = st.sampled_from(["square", "abs"])
CHUNKS = st.sampled_from([0, 500, 10**7])


def per_axis(draw: st.DrawFn, axes: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(axes))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of any dimension, and the shape of a sample that it can read."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    kernel, dilation = per_axis(draw, axes, 1, 3), per_axis(draw, axes, 1, 2)
    size = per_axis(draw, axes, 3, 6 if axes < 3 else 4)
    stride: tuple[int, ...] = per_axis(draw, axes, 1, 3)
    padding: Any = per_axis(draw, axes, 0, 2)
    if draw(st.booleans()):
        padding, stride = draw(st.sampled_from(["same", "valid"])), (1,) * axes
    pads = [p * (k - 1) for p, k in zip(dilation, kernel, strict=True)] if padding == "same" else padding
    if padding == "valid":
        pads = [0] * axes
    readable = zip(size, pads, dilation, kernel, strict=True)
    assume(all(n > p and n + (1 if padding == "same" else 2) * p > d * (k - 1) for n, p, d, k in readable))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding, "padding_mode": mode}
    return CONVOLUTIONS[axes](inputs, outputs, kernel, **options), (inputs, *size)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A transposed convolution of any dimension, and the shape of a sample that it can read."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2]))
    kernel, dilation = per_axis(draw, axes, 1, 3), per_axis(draw, axes, 1, 2)
    stride, size = per_axis(draw, axes, 1, 3), per_axis(draw, axes, 2, 3)
    padding = tuple(draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True))
    more = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    written = zip(size, stride, padding, dilation, kernel, more, strict=True)
    assume(all((n - 1) * s - 2 * p + d * (k - 1) + m + 1 > 0 for n, s, p, d, k, m in written))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding, "output_padding": more}
    return TRANSPOSED[axes](inputs, outputs, kernel, **options), (inputs, *size)


def assert_sums_powers(layer: Any, shape: tuple[int, ...], power: Any, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = layer.double()
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    y = layer(x)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    truth = torch.ones_like(layer.weight)
    for n in range(len(x)):
        (g,) = torch.autograd.grad(layer(x[n : n + 1]), layer.weight, dy[n : n + 1])
        truth += g.square() if power == "square" else g.abs()
    total = zeros_for_kernel(layer.weight, torch.float64).add_(1)
    add_kernel(layer, x, dy, total, PowerSum(power, chunk))
    torch.testing.assert_close(total, truth.detach(), rtol=1e-10, atol=1e-10)


@settings(deadline=None)
@given(convolutions(), POWERS, CHUNKS)
def test_convolutions_of_any_geometry_equal_autograd(
    convolution: tuple[nn.Module, tuple[int, ...]], power: str, chunk: int
) -> None:
    assert_sums_powers(*convolution, power, chunk)


@settings(deadline=None)
@given(transposed_convolutions(), POWERS, CHUNKS)
def test_transposed_convolutions_of_any_geometry_equal_autograd(
    convolution: tuple[nn.Module, tuple[int, ...]], power: str, chunk: int
) -> None:
    assert_sums_powers(*convolution, power, chunk)


@pytest.mark.skipif(library("per_sample") is None, reason="needs a C++ compiler and ninja")
@settings(deadline=None)
@given(st.one_of(convolutions(), transposed_convolutions()), POWERS)
def test_convolutions_of_any_geometry_equal_autograd_by_the_compiled_kernel(
    convolution: tuple[nn.Module, tuple[int, ...]], power: str
) -> None:
    with (
        mock.patch.object(per_sample_layers, "_kernel_is_cheaper", return_value=True),
        mock.patch.object(per_sample_layers, "_add_by_row", None),
        mock.patch.object(per_sample_layers, "_add_by_tap", None),
    ):
        assert_sums_powers(*convolution, power, 10**7)


@pytest.mark.parametrize("channels", [(3, 64, 7, 2, 32), (64, 64, 3, 1, 16), (8, 300, 3, 1, 4), (64, 96, 1, 1, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_convolution_is_the_same_with_and_without_kernels(
    channels: tuple[int, ...], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs, kernel, stride, size = channels
    torch.manual_seed(0)
    layer: Any = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    x = torch.randn(16, inputs, size, size).contiguous(memory_format=memory_format)
    dy = torch.randn_like(layer(x))
    compiled, torchs, truth = (zeros_for_kernel(layer.weight, dtype) for dtype in [torch.float32] * 2 + [torch.float64])
    add_kernel(layer, x, dy, compiled, PowerSum("square", 2**23))
    monkeypatch.setenv("SPARSEMTL_KERNELS", "0")
    add_kernel(layer, x, dy, torchs, PowerSum("square", 2**23))
    add_kernel(layer.double(), x.double(), dy.double(), truth, PowerSum("square", 2**23))
    assert float((compiled - truth).abs().max() / truth.max()) < 5e-7
    assert float((torchs - truth).abs().max() / truth.max()) < 1e-6  # a product of the BLAS, which may sum in one row


@each("size", [1, 2, 3, 8])
@each("power", ["square", "abs"])
def test_few_positions_and_many_agree_with_autograd_alike(size: int, power: str) -> None:
    assert_sums_powers(nn.Conv2d(2, 3, 3, padding=1), (2, size, size), power, 10**6)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 6, 3, groups=2), nn.Conv3d(4, 6, (1, 2, 3)), nn.ConvTranspose2d(4, 6, (3, 2), groups=2)]
)
def test_total_has_the_parameters_shape_whatever_its_layout(layer: Any) -> None:
    for parameter in layer.parameters():
        total: Tensor = zeros_for_kernel(parameter, torch.float64)
        assert total.shape == parameter.shape
        assert total.dtype == torch.float64
        assert not total.any()
