"""Bool tensors as bytes, one bit per entry."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsemtl.errors import MaskError


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor into bytes, eight entries each, the first entry in the highest bit."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().flatten().numpy()))


def check_packed(packed: Tensor, shape: torch.Size) -> None:
    """Raise a MaskError if the number of bytes does not match the shape of the mask."""
    size = -(-shape.numel() // 8)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise MaskError(
            f"a packed mask of shape {tuple(shape)} has {size} bytes, got {tuple(packed.shape)} of {packed.dtype}."
        )


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack bytes of `pack` into a bool tensor.

    Raises:
        MaskError: if the number of bytes does not match the shape.
    """
    check_packed(packed, shape)
    bits = np.unpackbits(packed.cpu().numpy(), count=shape.numel())
    return torch.from_numpy(bits).view(torch.bool).view(shape)
