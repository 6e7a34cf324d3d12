"""Tensors that the graph itself reads, in the form that their rule takes: directly in front of their only reader."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import operand, operation
from sparsemtl.compaction.rules.parameter import is_read_once

_VIEWS = frozenset(
    (
        *("contiguous", "flatten", "getitem", "permute", "reshape", "squeeze"),
        *("swapaxes", "t", "transpose", "unsqueeze", "view"),
    )
)
"""Operations that only give a tensor another shape or take a part of it."""


def place_own_tensors(network: Network) -> None:
    """Replace parameters by their views where one view alone reads them, and move them directly in front of readers.

    All other tensors of the reader then stand before the parameter, whose rule takes its channels from them.
    """
    for node in list(network.graph.nodes):
        if node.op == "get_attr" and is_read_once(node, network):
            while _is_fixed_view(reader := _reader(node), node):
                _replace(network, reader, node)
            reader.prepend(node)


def _reader(node: fx.Node) -> fx.Node:
    """Return the only reader of a node."""
    return next(iter(node.users))


def _is_fixed_view(reader: fx.Node, node: fx.Node) -> bool:
    """Return whether a reader is a view of a node whose shape is the same for all inputs, with one reader itself."""
    view = operand(reader) is node and operation(reader) in _VIEWS and not reader.kwargs
    return view and len(reader.all_input_nodes) == len(reader.users) == 1


def _replace(network: Network, view: fx.Node, node: fx.Node) -> None:
    """Replace a tensor by a view of it."""
    tensor: Any = network.tensor(node)
    own, *others = tensor.detach(), *view.args[1:]
    made: Tensor = (
        getattr(own, str(view.target))(*others) if view.op == "call_method" else view.target(own, *others)  # type: ignore[operator]
    )
    made = made.clone().contiguous()
    trained = isinstance(tensor, nn.Parameter)
    network.tensors[str(node.target)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if trained else made
    view.replace_all_uses_with(node)
    network.graph.erase_node(view)
