"""What a compacted network checks when it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsemtl.compaction.structures import tensors
from sparsemtl.errors import ParameterError

_AGAIN = "Compact the model with an example of such inputs (`example_inputs=...`)."


def check_axes(x: Tensor, axes: int) -> None:
    """Raise a ParameterError unless an input has as many axes as compaction took it to have."""
    if x.ndim != axes:
        raise ParameterError(
            f"this network was compacted for batches with {axes} axes, as its first layers read them, got shape "
            f"{tuple(x.shape)}. {_AGAIN}"
        )


def check_answer(answer: bool, expected: bool) -> None:
    """Raise a ParameterError unless a question about sizes has the answer that it had on the example."""
    if answer != expected:
        raise ParameterError(
            "this network was compacted for inputs of other sizes: the model asks about them and takes another way. "
            f"{_AGAIN}"
        )


def check_value(value: Any, expected: Any) -> None:
    """Raise a ParameterError unless an argument that is no tensor is what it was in the example."""
    if type(value) is not type(expected) or value != expected:
        raise ParameterError(f"this network was compacted for the argument {expected!r}, got {value!r}. {_AGAIN}")


def check_sizes(value: Any, axis: int, sizes: list[int]) -> None:
    """Raise a ParameterError unless the tensors of an input have the sizes on an axis that they had in the example."""
    found = [tensor.shape[axis] for tensor in tensors(value) if tensor.ndim > axis]
    if found != list(sizes):
        raise ParameterError(
            f"this network was compacted for inputs of size {sizes} on axis {axis}, got {found}. {_AGAIN}"
        )


def check_no_grad() -> None:
    """Raise a ParameterError if gradients are recorded."""
    if torch.is_grad_enabled():
        raise ParameterError(
            "the model gives other outputs where gradients are recorded; run this network under torch.no_grad()."
        )


def created(name: str, *args: Any, **kwargs: Any) -> Tensor:
    """Call a function of torch that makes a tensor of sizes, such as `torch.arange`.

    A function of its own, since torch.fx cannot trace calls of torch's with stand-ins for numbers, as it does when a
    network is read from a file.
    """
    tensor: Tensor = getattr(torch, name)(*args, **kwargs)
    return tensor
