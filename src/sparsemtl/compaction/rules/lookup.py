"""Lookup of the rule of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from sparsemtl.compaction.channels import Layout
from sparsemtl.compaction.checks import axes_of_input
from sparsemtl.compaction.network import Network, Select
from sparsemtl.compaction.operations import CONVOLUTIONS, NORMS, is_elementwise, operation, torch_class
from sparsemtl.compaction.rules import shapes, spatial
from sparsemtl.compaction.rules.channelwise import elementwise
from sparsemtl.compaction.rules.dense import convolution, linear
from sparsemtl.compaction.rules.joining import concatenation, selection
from sparsemtl.compaction.rules.rule import ChannelRule, Maker, Site, UnknownRule
from sparsemtl.compaction.rules.scaling import batch_norm, depthwise
from sparsemtl.compaction.rules.shapes import attribute, dimensions, size


def rules_for(network: Network) -> dict[fx.Node, ChannelRule]:
    """Return the rule of every node of a graph, in order."""
    rules: dict[fx.Node, ChannelRule] = {}
    layouts: dict[fx.Node, Layout] = {}
    free = network.free()
    for node in network.graph.nodes:
        site = Site(node, network, layouts, free)
        rules[node] = _rule(site)
        layouts[node] = rules[node].layout
    return rules


def _rule(site: Site) -> ChannelRule:
    node = site.node
    if node.op == "placeholder":
        return UnknownRule(node, [], Layout(axes_of_input(node, site.network)))
    maker = _maker(site)
    rule = maker(site) if maker is not None else None
    return rule or UnknownRule(node, node.all_input_nodes)


def _maker(site: Site) -> Maker | None:
    node = site.node
    if is_elementwise(node, site.module):
        return elementwise
    if node.op == "call_module":
        return _LAYERS.get(torch_class(site.module))
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target]
    return _OPERATIONS.get(operation(node))


def _convolution(site: Site) -> ChannelRule | None:
    return depthwise(site) or convolution(site)


_LAYERS: dict[type[nn.Module], Maker] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(NORMS, batch_norm),
    **spatial.LAYERS,
    nn.Flatten: shapes.flatten,
    nn.Linear: linear,
    Select: selection,
}
_FUNCTIONS: dict[Callable[..., Any], Maker] = {**spatial.FUNCTIONS, getattr: attribute}
_OPERATIONS: dict[str, Maker] = {
    **spatial.OPERATIONS,
    **shapes.OPERATIONS,
    "cat": concatenation,
    "dim": dimensions,
    "ndimension": dimensions,
    "size": size,
}
