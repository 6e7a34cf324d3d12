"""Restoring entries outside of a mask in one pass over memory: the caller of `restore.cpp`.

The bits are those of torch's path, so that no run depends on whether the kernel is there.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsemtl.kernels.compiled import library

_WORTHWHILE = 2**18
"""Entries from which the kernel is asked for, so that small models need no compiler."""


def takes(now: Tensor, before: Tensor, active: Tensor) -> bool:
    """Return whether the compiled kernel is there, and right for these tensors: contiguous, on the CPU."""
    return (
        now.numel() >= _WORTHWHILE
        and now.shape == before.shape == active.shape
        and now.dtype == before.dtype
        and all(type(t) is Tensor and t.device.type == "cpu" and t.is_contiguous() for t in (now, before, active))
        and library("restore", exact=True) is not None
    )


def restore_(now: Tensor, before: Tensor, active: Tensor) -> None:
    """Restore the entries of a tensor where a mask is False, in place.

    Args:
        now: integers of any width, as `takes` allows.
        before: like now.
        active: bool, or bytes of 0 and 1.
    """
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (now, before, active))
    function = getattr(library("restore", exact=True), f"restore_{now.element_size()}")
    function(*pointers, ctypes.c_int64(now.numel()), torch.get_num_threads())
