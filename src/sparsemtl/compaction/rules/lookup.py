"""Lookup of the rule of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import fx, nn

from sparsemtl.architectures.gates import mixed
from sparsemtl.compaction.checks import axes_of_input
from sparsemtl.compaction.graph.channels import Layout
from sparsemtl.compaction.graph.network import Network, Select
from sparsemtl.compaction.graph.operations import (
    CONVOLUTIONS,
    INSTANCE_NORMS,
    NORMS,
    is_elementwise,
    operation,
    torch_class,
)
from sparsemtl.compaction.graph.sizes import known_sizes
from sparsemtl.compaction.rules import aligned, axes, copying, recurrent, shapes, spatial
from sparsemtl.compaction.rules.channelwise import CASTS, alike, cast, elementwise, zeros
from sparsemtl.compaction.rules.dense import convolution, linear
from sparsemtl.compaction.rules.embedding import embedding
from sparsemtl.compaction.rules.grouped import group_norm, grouped
from sparsemtl.compaction.rules.joining import concatenation, selection
from sparsemtl.compaction.rules.parameter import parameter
from sparsemtl.compaction.rules.rule import ChannelRule, Maker, Site, UnknownRule
from sparsemtl.compaction.rules.scaling import batch_norm, depthwise, instance_norm, prelu
from sparsemtl.compaction.rules.shapes import attribute, dimensions, size


def rules_for(network: Network) -> dict[fx.Node, ChannelRule]:
    """Return the rule of every node of a graph, in order."""
    rules: dict[fx.Node, ChannelRule] = {}
    layouts: dict[fx.Node, Layout] = {}
    free = network.free()
    with known_sizes(network):
        for node in network.graph.nodes:
            site = Site(node, network, layouts, free)
            rules[node] = _rule(site)
            layouts[node] = rules[node].layout
    return rules


def _rule(site: Site) -> ChannelRule:
    node = site.node
    if node.op == "placeholder":
        return UnknownRule(node, [], Layout(axes_of_input(node, site.network)))
    rules = (maker(site) for maker in _makers(site))
    return next((rule for rule in rules if rule is not None), None) or UnknownRule(node, node.all_input_nodes)


def _makers(site: Site) -> Sequence[Maker]:
    """Return the makers to try, in order."""
    node = site.node
    if node.op == "get_attr":
        return (parameter,)
    if site.module is not None and (site.module._forward_hooks or site.module._forward_pre_hooks):
        return ()  # a hook may change the output in any way
    if is_elementwise(node, site.module):
        return (elementwise, aligned.broadcast)
    if node.op == "call_module":
        return _LAYERS.get(torch_class(site.module), ())
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target]
    name = operation(node)
    return [table[name] for table in _OPERATIONS if name in table]


_LAYERS: dict[type[nn.Module], Sequence[Maker]] = {
    **dict.fromkeys(CONVOLUTIONS, (depthwise, grouped, convolution)),
    **dict.fromkeys(NORMS, (batch_norm,)),
    **dict.fromkeys(INSTANCE_NORMS, (instance_norm,)),
    **{kind: (maker,) for kind, maker in spatial.LAYERS.items()},
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), (partial(alike, passing=zeros),)),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), (embedding,)),
    nn.GroupNorm: (group_norm,),
    nn.ChannelShuffle: (copying.shuffle,),
    nn.Flatten: (shapes.flatten,),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), (aligned.norm,)),
    nn.Linear: (linear,),
    nn.PixelShuffle: (copying.pixel_shuffle,),
    nn.PixelUnshuffle: (copying.pixel_unshuffle,),
    nn.PReLU: (prelu,),
    **dict.fromkeys(recurrent.GATES, (recurrent.recurrent,)),
    nn.Softmax: (aligned.softmax,),
    Select: (selection,),
}
_FUNCTIONS: dict[Callable[..., Any], Sequence[Maker]] = {
    **{function: (maker,) for function, maker in spatial.FUNCTIONS.items()},
    getattr: (attribute, axes.moved),
    mixed: (aligned.mixture,),
}
_OPERATIONS: Sequence[dict[str, Maker]] = (
    {"getitem": recurrent.item},
    spatial.OPERATIONS,
    shapes.OPERATIONS,
    axes.OPERATIONS,
    copying.OPERATIONS,
    aligned.OPERATIONS,
    dict.fromkeys(CASTS, cast),
    {"cat": concatenation, "dim": dimensions, "ndimension": dimensions, "size": size},
    {"cat": aligned.joined},
)
"""Operation of torch -> rule; those of later tables for the cases that earlier ones are not right for."""
