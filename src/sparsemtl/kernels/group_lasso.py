"""Proximal steps of group lasso in a few passes over memory: the caller of `group_lasso.cpp`.

Groups are given in the shape (L, A, G, B), in which `x[l, :, g, :]` is one group.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from sparsemtl.kernels.compiled import library

_TYPES = {torch.float32: "float", torch.float64: "double"}


def takes(x: Tensor, moment: Tensor | None) -> bool:
    """Return whether the compiled kernel is there, and right for these tensors.

    They are alike, on the CPU, in single or double precision, and their last two axes have no gaps.
    """
    other = x if moment is None else moment
    return (
        type(x) is type(other) is Tensor
        and x.dtype == other.dtype
        and x.dtype in _TYPES
        and x.device.type == other.device.type == "cpu"
        and x.shape == other.shape
        and x.numel() > 0
        and x.stride() == other.stride()
        and (x.shape[3] == 1 or x.stride(3) == 1)
        and (x.shape[2] == 1 or x.stride(2) == x.shape[3])
        and library("group_lasso") is not None
    )


def shrink_(x: Tensor, moment: Tensor | None, tau: float, eps: float) -> Tensor:
    """Apply the proximal map in place, with shifts tau / (sqrt(moment) + eps) or tau; return which groups are not zero.

    Args:
        x: (L, A, G, B), as `takes` allows.
        moment: like x; None for the plain map.
        tau: size of the step times the penalty's slope at zero, above 0.
        eps: addend of the root.

    Returns:
        (L, 1, G, 1), bool.
    """
    alive = x.new_empty((x.shape[0], 1, x.shape[2], 1), dtype=torch.bool)
    if moment is None:
        _call("plain", x, _sizes(x), ctypes.c_double(tau), alive)
    else:
        _call("shrink", x, moment, _sizes(x), ctypes.c_double(tau), ctypes.c_double(eps), alive)
    return alive


def pull(x: Tensor, moment: Tensor, tau: float, eps: float) -> Tensor:
    """Return ||x / shift|| of every group, (L, 1, G, 1), in the metric of a moment; see `shrink_`."""
    pulls = x.new_empty((x.shape[0], 1, x.shape[2], 1))
    _call("pull", x, moment, _sizes(x), ctypes.c_double(tau), ctypes.c_double(eps), pulls)
    return pulls


def _sizes(x: Tensor) -> Any:
    """Return lengths of the axes, and the strides of the first two."""
    return (ctypes.c_int64 * 6)(*x.shape, x.stride(0), x.stride(1))


def _call(name: str, x: Tensor, *arguments: Any) -> None:
    """Call a function for the dtype of x, with the addresses of tensors and the number of threads."""
    own = [ctypes.c_void_p(item.data_ptr()) if isinstance(item, Tensor) else item for item in (x, *arguments)]
    getattr(library("group_lasso"), f"{name}_{_TYPES[x.dtype]}")(*own, torch.get_num_threads())
