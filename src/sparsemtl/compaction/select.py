"""The one layer that compaction adds: it passes some channels on, and can put constant ones between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Select(nn.Module):
    """Copy entries of one axis; with constants, of the axis and constant entries behind it.

    Args:
        index: which entries, int64; those from the length of the axis on are constants.
        axis: of the input; 1 if there are constants.
        constants: (count,), values that are the same at all positions.
    """

    index: Tensor
    constants: Tensor | None

    def __init__(self, index: Tensor, axis: int, constants: Tensor | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index)
        self.register_buffer("constants", constants)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., entries, ...) to (..., len(index), ...)."""
        if self.constants is not None:
            values = self.constants.view(1, -1, *[1] * (x.ndim - 2))
            x = torch.cat([x, values.expand(x.shape[0], -1, *x.shape[2:])], dim=1)
        return torch.index_select(x, self.axis, self.index)

    def extra_repr(self) -> str:
        """What `print` shows."""
        constants = 0 if self.constants is None else len(self.constants)
        return f"entries={len(self.index)}, axis={self.axis}, constants={constants}"
