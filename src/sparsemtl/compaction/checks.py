"""Checks that a compacted network runs on its inputs, and the check of their number of axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import CONVOLUTIONS, NORMS, is_elementwise, torch_class
from sparsemtl.compaction.inputs import tensors
from sparsemtl.errors import ParameterError
from sparsemtl.heads.linear import pooled

_AGAIN = "Compact the model with an example of such inputs (`example_inputs=...`)."


def check_axes(x: Any, axes: int) -> None:
    """Raise a ParameterError unless an input is a tensor with the number of axes that compaction assumed."""
    if not isinstance(x, Tensor) or x.ndim != axes:
        raise ParameterError(
            f"this network was compacted for batches with {axes} axes, as its first layers read them, got "
            f"{f'shape {tuple(x.shape)}' if isinstance(x, Tensor) else type(x).__name__}. {_AGAIN}"
        )


def check_answer(answer: bool, expected: bool) -> None:
    """Raise a ParameterError unless a question about sizes has the answer that it had on the example."""
    if bool(answer) != expected:  # an exported graph answers by a symbol
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


def check_inputs(network: Network) -> None:
    """Add a check of the number of axes that compaction assumes for every input."""
    for node in list(network.graph.nodes):
        axes = axes_of_input(node, network) if node.op == "placeholder" else None
        if axes is not None and not any(user.target is check_axes for user in node.users):
            with network.graph.inserting_after(node):
                network.graph.call_function(check_axes, (node, axes))


def axes_of_input(source: fx.Node, network: Network) -> int | None:
    """Return the number of axes of a batch, which the first layers that read it determine; None if no layer does.

    A convolution determines it. So does a batch norm, or a head that averages over positions, behind a linear layer:
    features are then taken for vectors. Linear layers alone work on batches of any axes.
    """
    for user in source.users:
        if user.target is check_axes:
            return int(str(user.args[1]))
    vectors: bool = False
    waiting, seen = [(source, False)], {source}
    while waiting:
        node, linear = waiting.pop(0)
        for user in node.users:
            layer = network.module(user)
            kind = torch_class(layer)
            axes = CONVOLUTIONS.get(kind) or NORMS.get(kind)
            if axes is not None:
                return axes
            vectors |= linear and (kind in NORMS or user.target is pooled)
            keeps_axes = kind is nn.Linear or kind in NORMS or is_elementwise(user, layer)
            if keeps_axes and user not in seen:
                seen.add(user)
                waiting.append((user, linear or kind is nn.Linear))
    return 2 if vectors else None
