"""What a compacted network checks when it runs."""

from __future__ import annotations

from torch import Tensor

from sparsemtl.errors import ParameterError


def check_axes(x: Tensor, axes: int) -> None:
    """Raise a ParameterError unless an input has as many axes as compaction took it to have."""
    if x.ndim != axes:
        raise ParameterError(
            f"this network was compacted for batches with {axes} axes, as its first layers read them, got shape "
            f"{tuple(x.shape)}."
        )
