"""Products of weights and bool masks: a mask is read at one byte per entry, and products reuse memory.

Fresh memory costs more than the product itself: the system clears every page at its first use.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsemtl.kernels.masked_product import multiply

SMALL = 2**14
"""Entries below which torch's own product is as fast."""
_LARGE = 2**18
"""Entries from which the compiled kernel computes, where there is one: less gains too little to compile it for."""
_PART = 2**17
"""Entries per thread and part of `cached_parts`: a part of a few tensors fits into the cache of a core."""


class MaskedProducts:
    """Products of weights and the masks of one value, `TaskMasks` or `TaskNetworks`.

    Args:
        memory: memory that the products reuse, which values of the same model may share.
    """

    def __init__(self, memory: ProductMemory | None = None) -> None:
        self.memory = ProductMemory() if memory is None else memory
        self._moved: dict[tuple[str, str, torch.device], Tensor] = {}

    def __call__(self, weight: Tensor, mask: Tensor, task: str, name: str) -> Tensor:
        """Return weight * mask with a graph to the weight, bit for bit torch's product: 0 * -1 is -0, 0 * NaN is NaN.

        Args:
            weight: any tensor.
            mask: the mask of the task for the weight; its shape broadcasts to the weight's.
            task: name of the task.
            name: name of the weight.
        """
        if mask.device != weight.device or mask.is_inference():
            mask = self._usable(mask, (task, name, weight.device))
        return masked_product(weight, mask, self.memory, name)

    def _usable(self, mask: Tensor, key: tuple[str, str, torch.device]) -> Tensor:
        """Return a mask on the device of the weight, and such that autograd may save it; moved once."""
        if key not in self._moved:
            with torch.inference_mode(False):
                self._moved[key] = mask.to(key[-1], copy=True)
        return self._moved[key]


def masked_product(weight: Tensor, mask: Tensor, memory: ProductMemory, name: str) -> Tensor:
    """Return the product; see `MaskedProducts`."""
    if not _is_plain(weight, mask):
        return weight * mask
    product: Tensor = _MaskedProduct.apply(weight, mask, memory, name)  # type: ignore[no-untyped-call]
    return product


def cached_parts(*tensors: Tensor) -> Iterator[Sequence[Tensor]]:
    """Yield corresponding parts of tensors of one shape; several operations on a part find it in the cache.

    Tensors that are not all contiguous, or not on the CPU, are one part.
    """
    if all(t.is_contiguous() and t.device.type == "cpu" for t in tensors):
        size = _PART * torch.get_num_threads()
        yield from zip(*(t.view(-1).split(size) for t in tensors), strict=True)
    else:
        yield tensors


class ProductMemory:
    """Memory of products, by the name of the weight, kept from step to step.

    Every product gets a storage of its own over the memory. The memory is free again when that storage is: no tensor,
    view or graph refers to it any more. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, list[_Block]] = {}

    def empty_like(self, name: str, tensor: Tensor) -> Tensor:
        """Return a contiguous tensor with undefined entries: over kept memory, or fresh if all of it is in use."""
        size = tensor.numel() * tensor.element_size()
        with _lock:
            blocks = [block for block in self._blocks.get(name, []) if block.size == size]
            block = next((block for block in blocks if block.is_free), None)
            if block is None and len(blocks) < _MOST_BLOCKS:
                block = _Block(size)
                blocks.append(block)
            self._blocks[name] = blocks
            storage = None if block is None else block.lease()
        if storage is None:
            return torch.empty_like(tensor, requires_grad=False)
        return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())

    def __reduce__(self) -> Any:
        return ProductMemory, ()


_MOST_BLOCKS = 3
"""Blocks per weight: the product, its gradient, and a gradient to which it is added. More graphs that are alive at the
same time get fresh memory."""
_lock = threading.Lock()
_ALIGNMENT = 64
"""Bytes; torch aligns its own memory in the same way, and results of MKL may depend on it."""


class _Block:
    """Block of memory that one storage at a time may use."""

    def __init__(self, size: int) -> None:
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self.size = size
        self._memory = memory[start : start + size]
        self._lease: weakref.ref[np.ndarray] | None = None

    @property
    def is_free(self) -> bool:
        return self._lease is None or self._lease() is None

    def lease(self) -> torch.UntypedStorage:
        """Return a new storage over the memory, which holds the array of the lease until it dies."""
        array = self._memory[:]
        self._lease = weakref.ref(array)
        return torch.from_numpy(array).untyped_storage()


class _MaskedProduct(torch.autograd.Function):
    """Product of a weight and a mask; its gradient is such a product again, of any order."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, memory: ProductMemory, name: str) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)
        ctx.memory, ctx.name = memory, name
        product = memory.empty_like(name, weight)
        if weight.numel() < _LARGE or not multiply(weight, mask, product):
            for part, factors, weights in cached_parts(product, mask.view(torch.uint8), weight):
                part.copy_(factors).mul_(weights)  # torch converts bytes to floats several times as fast as bools
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return masked_product(gradient, mask, ctx.memory, ctx.name), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        mask: Tensor = ctx.saved_tensors[0]
        return tangent * mask


def _is_plain(weight: Tensor, mask: Tensor) -> bool:
    """Return True if the product can be computed in parts, outside of transforms, modes and compilers."""
    return (
        weight.numel() >= SMALL
        and weight.device.type == "cpu"
        and weight.is_floating_point()
        and type(weight) in (Tensor, nn.Parameter)
        and type(mask) is Tensor
        and weight.shape == mask.shape
        and weight.is_contiguous()
        and mask.is_contiguous()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )
