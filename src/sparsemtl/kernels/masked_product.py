"""Products of weights and bool masks in one pass over memory: the caller of `masked_product.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sparsemtl.kernels.compiled import library

_TYPES = {torch.float32: "float", torch.float64: "double"}


def multiply(weight: Tensor, mask: Tensor, product: Tensor) -> bool:
    """Write weight * mask to `product`, bit for bit as torch; return False where torch must do it.

    Args:
        weight: contiguous, on the CPU; the kernel takes float32 and float64.
        mask: bool, contiguous, of the same shape.
        product: contiguous, of the shape and dtype of the weight.
    """
    if weight.dtype not in _TYPES or weight.is_neg():
        return False
    compiled = library("masked_product", exact=True)
    if compiled is None:
        return False
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (weight, mask, product))
    function = getattr(compiled, f"multiply_{_TYPES[weight.dtype]}")
    function(*pointers, ctypes.c_int64(weight.numel()), torch.get_num_threads())
    return True
