"""Per-sample gradients of convolutions, squared and summed in registers: the caller of `per_sample.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsemtl.kernels.compiled import library

_TYPES = {torch.float32: "float", torch.float64: "double"}

_PACKED = 2**20
"""Bytes of output gradients that are packed at a time, and stay in the processor's second-level cache."""


class Taps:
    """Positions of every tap of a convolution's kernel.

    Args:
        positions: per tap, the flat input positions that it reads and the flat output positions that it writes, int64.
    """

    def __init__(self, positions: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._positions = [(read.int(), written.int()) for read, written in positions]
        pointers = ctypes.c_void_p * len(positions)
        self.read = pointers(*(read.data_ptr() for read, _ in self._positions))
        self.written = pointers(*(written.data_ptr() for _, written in self._positions))
        self.counts = (ctypes.c_int64 * len(positions))(*(len(read) for read, _ in positions))


def takes(total: Tensor, x: Tensor, dy: Tensor) -> bool:
    """Return whether the kernel is right for these tensors: plain ones of one dtype on the CPU."""
    return (
        total.is_contiguous()
        and total.dtype in _TYPES
        and all(type(tensor) is Tensor and tensor.dtype == total.dtype for tensor in (x, dy))
        and all(tensor.device.type == "cpu" and not tensor.is_neg() for tensor in (total, x, dy))
    )


def add_products(total: Tensor, x: Tensor, dy: Tensor, taps: Taps, groups: int, *, square: bool) -> bool:
    """Add sum over samples of |sum over positions of x dy|^power; return False if there is no compiled kernel.

    Args:
        total: (taps, I / groups, O), contiguous.
        x: (N, I, positions).
        dy: (N, O, positions).
        taps: positions of the taps.
        groups: groups of channels.
        square: power 2, otherwise 1.
    """
    compiled = library("per_sample")
    if compiled is None:
        return False
    kind = _TYPES[total.dtype]
    x, dy = x.contiguous(), dy.contiguous()
    samples, outputs, written = dy.shape
    outputs //= groups
    width = getattr(compiled, f"width_{kind}")()
    packed_size = max(1, groups * -(-outputs // width) * width * written)  # of one sample
    together = max(1, min(samples, _PACKED // (packed_size * total.element_size())))
    packed = total.new_empty(together * packed_size)
    sizes = (samples, groups, x.shape[1] // groups, outputs, len(taps.counts), x.shape[2], written, together)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (total, x, dy, packed))
    add = getattr(compiled, f"add_{'square' if square else 'abs'}_{kind}")
    add(*pointers, taps.read, taps.written, taps.counts, (ctypes.c_int64 * 8)(*sizes), torch.get_num_threads())
    return True
