"""Per-sample gradients of convolutions of any dimension, stride, dilation, padding and number of groups.

Sample n's gradient at one tap (an offset inside the kernel) is the product, over output positions, of the inputs
that the tap reads and the output gradients. On feature maps the taps along the last axis are copied side by side; a
shift along any other axis is then a view of that copy, so a 3x3 kernel costs three copies of the input and not
nine. On maps of a few positions each tap is taken on its own, with just the positions where it does not read padding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsemtl.criteria.per_sample_sums import PowerSum


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's kernel reads; tuples have one entry a spatial axis, `pads` is in the order of `F.pad`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    mode: str
    groups: int

    @classmethod
    def of(cls, layer: _ConvNd) -> Geometry:
        """Read a layer's geometry."""
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        pads = tuple(layer._reversed_padding_repeated_twice)
        return cls(layer.kernel_size, layer.stride, layer.dilation, pads, mode, layer.groups)

    def read(self, axis: int, tap: int, outputs: int) -> slice:
        """What a tap reads of a padded axis to give so many outputs."""
        start = tap * self.dilation[axis]
        return slice(start, start + (outputs - 1) * self.stride[axis] + 1, self.stride[axis])


def zeros(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A total for a bias, or for a weight (O, I, *kernel), which lies in memory as (*kernel, I, O), like sums."""
    if parameter.ndim == 1:
        return torch.zeros_like(parameter, dtype=dtype)
    outputs, inputs, *kernel = parameter.shape
    total = torch.zeros(*kernel, inputs, outputs, dtype=dtype, device=parameter.device)
    return total.permute(-1, -2, *range(len(kernel)))


def add_weight(layer: _ConvNd, x: Tensor, dy: Tensor, total: Tensor, power_sum: PowerSum) -> None:
    """Add the weight's per-sample gradients.

    A transposed convolution is a convolution read backwards: the roles of input and output gradient change.

    Args:
        layer: the layer.
        x: its input (N, I, *size).
        dy: gradient of its output (N, O, *size).
        total: as `zeros` makes it.
        power_sum: what to add.
    """
    if isinstance(layer, _ConvTransposeNd):
        x, dy = dy, x
    geometry = Geometry.of(layer)
    taps = total.permute(*range(2, total.ndim), 1, 0)
    if power_sum.prefers_pairs(prod(dy.shape[2:])):
        _add_by_tap(geometry, x, dy, taps, power_sum)
    else:
        _add_by_row(geometry, x, dy, taps, power_sum)


def _add_by_tap(geometry: Geometry, x: Tensor, dy: Tensor, taps: Tensor, power_sum: PowerSum) -> None:
    """Add to taps (*kernel, I, O), one tap at a time, positions first."""
    inputs, outputs = (
        tensor.flatten(2).permute(2, 0, 1).unflatten(2, (geometry.groups, -1)).contiguous() for tensor in (x, dy)
    )
    for tap, read, written in _positions(geometry, tuple(x.shape[2:]), tuple(dy.shape[2:])):
        if len(read):
            power_sum.pairs(_grouped(taps[tap], geometry.groups), inputs[read], outputs[written])


@functools.lru_cache(maxsize=256)
def _positions(
    geometry: Geometry, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> list[tuple[tuple[int, ...], Tensor, Tensor]]:
    """Tap -> flat input positions that it reads and flat output positions that it writes, without padding."""
    index = torch.arange(1.0, prod(inputs) + 1, dtype=torch.float64).view(1, 1, *inputs)
    padded = F.pad(index, geometry.pads, geometry.mode)[0, 0]
    table = []
    for tap in product(*(range(size) for size in geometry.kernel)):
        read = padded[tuple(geometry.read(axis, t, outputs[axis]) for axis, t in enumerate(tap))].flatten().long()
        written = read.nonzero().flatten()
        table.append((tap, read[written] - 1, written))
    return table


def _add_by_row(geometry: Geometry, x: Tensor, dy: Tensor, taps: Tensor, power_sum: PowerSum) -> None:
    """Add to taps (*kernel, I, O), all taps along the last axis together."""
    size = dy.shape[2:]
    right = dy.flatten(2).unflatten(1, (geometry.groups, -1)).transpose(2, 3)
    for samples in _chunks(geometry, x, dy, power_sum.chunk):
        rows = _rows(geometry, x[samples], size[-1])
        gradient = right[samples].contiguous()
        for outer in product(*(range(size) for size in geometry.kernel[:-1])):
            window: Any = tuple(geometry.read(axis, tap, size[axis]) for axis, tap in enumerate(outer))
            left = rows[(..., *window, slice(None))].flatten(4).flatten(2, 3)
            power_sum.products(_grouped(taps[outer].flatten(0, 1), geometry.groups), left, gradient)


def _chunks(geometry: Geometry, x: Tensor, dy: Tensor, chunk: int) -> Iterator[slice]:
    """Slices of samples whose rows take about `chunk` bytes."""
    size = geometry.kernel[-1] * x[0].numel() * dy.shape[-1] // x.shape[-1] * x.element_size()
    count = max(1, chunk // max(size, 1))
    return (slice(start, start + count) for start in range(0, len(x), count))


def _rows(geometry: Geometry, x: Tensor, width: int) -> Tensor:
    """What each tap of the last axis reads: (N, groups, kernel[-1], I / groups, *padded size, width)."""
    padded = F.pad(x, geometry.pads, geometry.mode).unflatten(1, (geometry.groups, -1))
    last = len(geometry.kernel) - 1
    return torch.stack([padded[..., geometry.read(last, tap, width)] for tap in range(geometry.kernel[-1])], 2)


def _grouped(total: Tensor, groups: int) -> Tensor:
    """(K, O) of all groups -> (groups, K, O / groups)."""
    grouped: Tensor = total.unflatten(1, (groups, -1))
    return grouped.transpose(0, 1)
