"""Bool tensors as bytes, one bit per entry."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemtl.errors import MaskError


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor into bytes, eight entries each, the first entry in the highest bit."""
    bits = mask.flatten().to(torch.uint8).cpu()
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack bytes of `pack` into a bool tensor.

    Raises:
        MaskError: if the number of bytes does not match the shape.
    """
    size = -(-shape.numel() // 8)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise MaskError(
            f"a packed mask of shape {tuple(shape)} has {size} bytes, got {tuple(packed.shape)} of {packed.dtype}."
        )
    bits = (packed[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8)) & 1
    return bits.flatten()[: shape.numel()].bool().view(shape)
