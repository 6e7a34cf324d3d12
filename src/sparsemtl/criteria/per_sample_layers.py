"""Layers whose per-sample gradients follow from their input and the gradient of their output.

`RULES` is the registry: layer class -> rule. A layer without one is no error: its parameters take the general path.

Convolutions of any dimension, stride, dilation, padding and number of groups: sample n's gradient at one tap (an offset
inside the kernel) is the product, over output positions, of the inputs that the tap reads and the output gradients.
On feature maps the taps along the last axis are copied side by side; a shift along any other axis is then a view of
that copy, so a 3x3 kernel costs three copies of the input and not nine. On maps of a few positions each tap is taken on
its own, with just the positions where it does not read padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsemtl.criteria.power_sum import PowerSum
from sparsemtl.kernels import per_sample


@dataclass(frozen=True)
class GradientRule:
    """Rule by which one class of layers adds its per-sample gradients.

    Attributes:
        add: adds to totals, for (layer, input (N, ...), output gradient (N, ...), parameter -> total, sums).
        zeros: returns an empty total for a parameter, in the memory layout that is fastest for `add`.
        handles: returns whether `add` is right for a layer with this configuration and this input.
    """

    add: Callable[[Any, Tensor, Tensor, Mapping[str, Tensor], PowerSum], None]
    zeros: Callable[[Tensor, torch.dtype], Tensor] = lambda tensor, dtype: torch.zeros_like(tensor, dtype=dtype)
    handles: Callable[[Any, Tensor], bool] = lambda layer, x: x.ndim > 1


def rule_for(layer: nn.Module) -> GradientRule | None:
    """Return the layer's rule, None for a subclass that computes something else."""
    for kind, rule in RULES.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return rule
    return None


def _linear(layer: nn.Linear, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
    """Add W: sum over positions of dy x^T; b: of dy."""
    if x.ndim == 2:
        if "weight" in totals:
            sums.outer_products(totals["weight"], dy, x)
        if "bias" in totals:
            sums.gradients(totals["bias"], dy)
        return
    x, dy = x.flatten(1, -2), dy.flatten(1, -2)
    if "weight" in totals:
        sums.products(totals["weight"].unsqueeze(0), dy.transpose(1, 2).unsqueeze(1), x.unsqueeze(1))
    if "bias" in totals:
        sums.gradients(totals["bias"], dy.sum(1))


def _convolution(layer: _ConvNd, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
    """Add W: see `add_kernel`; b: sum over positions of dy."""
    if "weight" in totals:
        add_kernel(layer, x, dy, totals["weight"], sums)
    if "bias" in totals:
        sums.gradients(totals["bias"], dy.flatten(2).sum(2))


def _embedding(layer: nn.Embedding, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
    """Add row v: sum of dy over the positions that hold v; the padding row has no gradient."""
    if "weight" not in totals:
        return
    rows = layer.num_embeddings
    sample = torch.arange(len(x), device=x.device).repeat_interleave(x[0].numel())
    places, place = (sample * rows + x.flatten()).unique(return_inverse=True)
    gradients = dy.new_zeros(len(places), dy.shape[-1]).index_add_(0, place, dy.flatten(0, -2))
    row = places % rows
    if layer.padding_idx is not None:
        gradients[row == layer.padding_idx] = 0
    total = totals["weight"]
    total.index_add_(0, row, sums.powered(gradients.to(total.dtype)))


def _norm(
    normalised: Callable[[Any, Tensor], Tensor], over_positions: Callable[[Tensor, int], Tensor]
) -> Callable[[Any, Tensor, Tensor, Mapping[str, Tensor], PowerSum], None]:
    """Return a rule's `add` for scale: sum over positions of dy * normalised(x); shift: of dy."""

    def add(layer: Any, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
        for name, total in totals.items():
            gradient = dy * normalised(layer, x) if name == "weight" else dy
            sums.gradients(total, over_positions(gradient, total.ndim))

    return add


def _channels_first(tensor: Tensor, axes: int) -> Tensor:
    """Sum (N, C, *positions) to (N, C)."""
    return tensor.flatten(2).sum(2) if tensor.ndim > 2 else tensor


def _channels_last(tensor: Tensor, axes: int) -> Tensor:
    """Sum (N, *positions, *features) to (N, *features), which are the last `axes`."""
    return tensor.flatten(1, -axes - 1).sum(1) if tensor.ndim > axes + 1 else tensor


def _batch_normalised(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)


def _group_normalised(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, layer.num_groups, eps=layer.eps)


def _layer_normalised(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)


def _rms_normalised(layer: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, layer.normalized_shape, eps=layer.eps)


def _has_batch_axis(layer: _ConvNd, x: Tensor) -> bool:
    """Return False for (C, *size), whose channels would pass for samples."""
    return x.ndim == layer.weight.ndim


def _keeps_samples_apart(layer: nn.Embedding, x: Tensor) -> bool:
    """Return False for scaling by frequency, which mixes the samples, and norm limits, which change the weights."""
    return layer.max_norm is None and not layer.scale_grad_by_freq


@dataclass(frozen=True)
class _Geometry:
    """Positions that a convolution's kernel reads; tuples have one entry per spatial axis, `pads` as in `F.pad`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]
    mode: str
    groups: int

    @classmethod
    def of(cls, layer: _ConvNd) -> _Geometry:
        """Return a layer's geometry."""
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        pads = tuple(layer._reversed_padding_repeated_twice)
        return cls(layer.kernel_size, layer.stride, layer.dilation, pads, mode, layer.groups)

    def outer_taps(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> list[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """Return (tap, slices of inputs, slices of outputs) along all axes but the last, where the tap reads no zeros.

        Slices of inputs are those of the padded input where it is not padded by zeros.
        """
        axes = range(len(self.kernel) - 1)
        taps = []
        for tap in product(*(range(self.kernel[axis]) for axis in axes)):
            slices = [self._inside(axis, tap[axis], inputs[axis], outputs[axis]) for axis in axes]
            if all(written.start < written.stop for _, written in slices):
                taps.append((tap, tuple(read for read, _ in slices), tuple(written for _, written in slices)))
        return taps

    def _inside(self, axis: int, tap: int, inputs: int, outputs: int) -> tuple[slice, slice]:
        if self.mode != "constant":
            return self.read(axis, tap, outputs), slice(0, outputs)
        stride, first = self.stride[axis], tap * self.dilation[axis] - self.pads[-2 * axis - 2]
        start = max(0, -(first // stride))  # of the outputs; the last one reads inputs - 1 at most
        stop = min(outputs, (inputs - 1 - first) // stride + 1)
        first += start * stride
        return slice(first, first + (stop - start - 1) * stride + 1, stride), slice(start, stop)

    def read(self, axis: int, tap: int, outputs: int) -> slice:
        """Return the slice of a padded axis that a tap reads for this number of outputs."""
        start = tap * self.dilation[axis]
        return slice(start, start + (outputs - 1) * self.stride[axis] + 1, self.stride[axis])


def zeros_for_kernel(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a total for a bias, or for a weight (O, I, *kernel) that lies in memory as (*kernel, I, O), like sums."""
    if parameter.ndim == 1:
        return torch.zeros_like(parameter, dtype=dtype)
    outputs, inputs, *kernel = parameter.shape
    total = torch.zeros(*kernel, inputs, outputs, dtype=dtype, device=parameter.device)
    return total.permute(-1, -2, *range(len(kernel)))


def add_kernel(layer: _ConvNd, x: Tensor, dy: Tensor, total: Tensor, power_sum: PowerSum) -> None:
    """Add the per-sample gradients of a convolution's weight.

    A transposed convolution is a convolution read backwards: the roles of input and output gradient change.

    Args:
        layer: the layer.
        x: its input (N, I, *size).
        dy: gradient of its output (N, O, *size).
        total: as `zeros_for_kernel` returns it.
        power_sum: sum to add.
    """
    if isinstance(layer, _ConvTransposeNd):
        x, dy = dy, x
    geometry = _Geometry.of(layer)
    taps = total.permute(*range(2, total.ndim), 1, 0)
    if _kernel_is_cheaper(geometry, x, dy, power_sum) and _add_by_kernel(geometry, x, dy, taps, power_sum):
        return
    if power_sum.prefers_pairs(prod(dy.shape[2:])):
        _add_by_tap(geometry, x, dy, taps, power_sum)
    else:
        _add_by_row(geometry, x, dy, taps, power_sum)


_WORTHWHILE = 10**7
"""Multiply-adds above which a call of the compiled kernel is considered, so that small models need no compiler."""


def _kernel_is_cheaper(geometry: _Geometry, x: Tensor, dy: Tensor, power_sum: PowerSum) -> bool:
    """Return whether the compiled kernel costs less than products of torch, by count of multiply-adds."""
    inputs, outputs = x.shape[1] // geometry.groups, dy.shape[1] // geometry.groups
    read, written = tuple(x.shape[2:]), tuple(dy.shape[2:])
    if len(x) * x.shape[1] * outputs * prod(geometry.kernel) * prod(written) < _WORTHWHILE:
        return False
    counts = [len(positions) for _, positions, _ in _positions(geometry, read, written)]
    if power_sum.prefers_pairs(prod(written)):
        torch_cost = sum(count * (count + 1) / 2 for count in counts) * 1.3
    else:
        torch_cost = len(counts) * (prod(written) + 4) * 1.5
    kernel_cost = float(sum(count + 1 for count in counts if count))
    kernel_cost *= -(-outputs // 32) * 32 / outputs  # vectors of outputs are filled up
    kernel_cost *= max(1, 4 / inputs)  # few inputs do not fill the pipeline
    return kernel_cost < torch_cost


def _add_by_kernel(geometry: _Geometry, x: Tensor, dy: Tensor, taps: Tensor, power_sum: PowerSum) -> bool:
    """Add to taps (*kernel, I, O) by the compiled kernel; return False if there is none for these tensors."""
    total = taps.flatten(0, -3)
    if not per_sample.takes(total, x, dy):
        return False
    positions = _kernel_positions(geometry, tuple(x.shape[2:]), tuple(dy.shape[2:]))
    square = power_sum.power == "square"
    return per_sample.add_products(total, x.flatten(2), dy.flatten(2), positions, geometry.groups, square=square)


@functools.lru_cache(maxsize=256)
def _kernel_positions(geometry: _Geometry, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> per_sample.Taps:
    """Return `_positions` as the compiled kernel reads them."""
    return per_sample.Taps([(read, written) for _, read, written in _positions(geometry, inputs, outputs)])


def _add_by_tap(geometry: _Geometry, x: Tensor, dy: Tensor, taps: Tensor, power_sum: PowerSum) -> None:
    """Add to taps (*kernel, I, O), one tap at a time, positions first."""
    inputs, outputs = (
        tensor.flatten(2).permute(2, 0, 1).unflatten(2, (geometry.groups, -1)).contiguous() for tensor in (x, dy)
    )
    for tap, read, written in _positions(geometry, tuple(x.shape[2:]), tuple(dy.shape[2:])):
        if len(read):
            power_sum.pairs(_grouped(taps[tap], geometry.groups), inputs[read], outputs[written])


@functools.lru_cache(maxsize=256)
def _positions(
    geometry: _Geometry, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> list[tuple[tuple[int, ...], Tensor, Tensor]]:
    """Return (tap, flat input positions that it reads, flat output positions that it writes), without padding."""
    index = torch.arange(1.0, prod(inputs) + 1, dtype=torch.float64).view(1, 1, *inputs)
    padded = F.pad(index, geometry.pads, geometry.mode)[0, 0]
    table = []
    for tap in product(*(range(size) for size in geometry.kernel)):
        read = padded[tuple(geometry.read(axis, t, outputs[axis]) for axis, t in enumerate(tap))].flatten().long()
        written = read.nonzero().flatten()
        table.append((tap, read[written] - 1, written))
    return table


def _add_by_row(geometry: _Geometry, x: Tensor, dy: Tensor, taps: Tensor, power_sum: PowerSum) -> None:
    """Add to taps (*kernel, I, O), all taps along the last axis together."""
    size = dy.shape[2:]
    right = dy.flatten(2).unflatten(1, (geometry.groups, -1)).transpose(2, 3)
    outer_taps = geometry.outer_taps(tuple(x.shape[2:]), tuple(size))
    for samples in _chunks(geometry, x, dy, power_sum.chunk):
        rows = _rows(geometry, x[samples], size[-1])
        gradient = right[samples].contiguous().unflatten(2, size)
        for tap, read, written in outer_taps:
            window: Any = (..., *read, slice(None))
            left = rows[window].flatten(4).flatten(2, 3)
            part = gradient[(slice(None), slice(None), *written)].flatten(2, -2)
            power_sum.products(_grouped(taps[tap].flatten(0, 1), geometry.groups), left, part)


def _chunks(geometry: _Geometry, x: Tensor, dy: Tensor, chunk: int) -> Iterator[slice]:
    """Yield slices of samples whose rows take about `chunk` bytes."""
    size = geometry.kernel[-1] * x[0].numel() * dy.shape[-1] // x.shape[-1] * x.element_size()
    count = max(1, chunk // max(size, 1))
    return (slice(start, start + count) for start in range(0, len(x), count))


def _rows(geometry: _Geometry, x: Tensor, width: int) -> Tensor:
    """Return the inputs of each tap of the last axis: (N, groups, kernel[-1], I / groups, *size, width).

    Zeros are padded along the last axis alone, for `outer_taps` leaves out the others.
    """
    pads = geometry.pads[:2] if geometry.mode == "constant" else geometry.pads
    padded = F.pad(x, pads, geometry.mode).unflatten(1, (geometry.groups, -1))
    last = len(geometry.kernel) - 1
    return torch.stack([padded[..., geometry.read(last, tap, width)] for tap in range(geometry.kernel[-1])], 2)


def _grouped(total: Tensor, groups: int) -> Tensor:
    """Return (K, O) of all groups as (groups, K, O / groups)."""
    grouped: Tensor = total.unflatten(1, (groups, -1))
    return grouped.transpose(0, 1)


_CONVOLUTION = GradientRule(_convolution, zeros_for_kernel, _has_batch_axis)
_BATCH_NORM = GradientRule(_norm(_batch_normalised, _channels_first))

RULES: dict[type[nn.Module], GradientRule] = {
    nn.Linear: GradientRule(_linear),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _CONVOLUTION,
    nn.ConvTranspose2d: _CONVOLUTION,
    nn.ConvTranspose3d: _CONVOLUTION,
    nn.Embedding: GradientRule(_embedding, handles=_keeps_samples_apart),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.SyncBatchNorm: _BATCH_NORM,
    nn.GroupNorm: GradientRule(_norm(_group_normalised, _channels_first)),
    nn.LayerNorm: GradientRule(_norm(_layer_normalised, _channels_last)),
}
if hasattr(nn, "RMSNorm"):  # torch 2.4
    RULES[nn.RMSNorm] = GradientRule(_norm(_rms_normalised, _channels_last))
