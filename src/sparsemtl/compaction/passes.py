"""Passes over the canonical graph, in their order.

Batch norms are folded into the layers before them (`fold_norms`), constants into the layers behind them
(`fold_constants`); needed channels are traced back from the output (`needed_channels`), and the others are removed
(`remove_channels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.compaction.graph.canonicalize import drop_unread
from sparsemtl.compaction.graph.channels import Constants, Need
from sparsemtl.compaction.graph.network import Network, WeightCut
from sparsemtl.compaction.graph.operations import CONVOLUTIONS, NORMS, operand, torch_class
from sparsemtl.compaction.rules import ChannelRule, Editor
from sparsemtl.compaction.rules.scaling import affine_of


def fold_norms(network: Network, rules: Mapping[fx.Node, ChannelRule]) -> None:
    """Multiply scales of batch norms into the weights of layers whose output nothing else reads."""
    free = network.free()
    for node in list(network.graph.nodes):
        norm, source = network.module(node), operand(node)
        if source is None or torch_class(norm) not in NORMS or norm not in free or len(source.users) > 1:
            continue
        layer = network.module(source)
        if layer in free and _can_take(layer, rules[source].layout.rank) and _fold(layer, norm, network, source):
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)


def _can_take(layer: Any, rank: int | None) -> bool:
    kind = torch_class(layer)
    if kind is nn.Linear:
        return rank == 2
    return kind in CONVOLUTIONS and not (isinstance(layer, _ConvTransposeNd) and layer.groups > 1)


def _fold(layer: Any, norm: Any, network: Network, source: fx.Node) -> bool:
    """Change the layer; return False if the norm is not the same for all batches, or not of the layer's channels."""
    affine = None if norm.training else affine_of(norm)
    if affine is None:
        return False
    scale, shift = affine
    weight, bias = layer.weight.detach(), layer.bias
    axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    trained = layer.weight.requires_grad
    layer.weight = nn.Parameter((weight * scale.view(shape)).to(weight.dtype), requires_grad=trained)
    shift = shift if bias is None else shift + bias.detach() * scale
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=trained)
    cut = network.cuts.get(str(source.target), WeightCut())
    factor = scale if cut.factor is None else cut.factor * scale
    network.cuts[str(source.target)] = replace(cut, factor=factor, axis=axis)
    return True


def fold_constants(rules: Mapping[fx.Node, ChannelRule]) -> None:
    """Fold the constants that layers read into their weights, so that the layers no longer read them."""
    found: dict[fx.Node, Constants | None] = {}
    for node, rule in rules.items():
        found[node] = rule.constants(*(found[source] for source in rule.inputs))


def needed_channels(rules: Mapping[fx.Node, ChannelRule], multiple_of: int = 1) -> dict[fx.Node, Need | None]:
    """Return the need of every node: a channel is needed if a later node has a weight on it that changes the output.

    Args:
        rules: rules of the nodes, in order.
        multiple_of: number of which the channels of images are to be a multiple, with others that change nothing.

    Returns:
        node -> need of its output, None where no channels are known.
    """
    found: dict[fx.Node, Need | None] = {
        node: None if rule.layout.channels is None else Need.nothing(rule.layout.channels)
        for node, rule in rules.items()
    }
    for node, rule in reversed(list(rules.items())):
        out = found[node]
        out = None if out is None else out.at_least_one()
        found[node] = out = out if out is None or not rule.layout.is_image else out.rounded(multiple_of)
        asked = rule.needs(out, *(rules[source].layout for source in rule.inputs))
        for source, need in zip(rule.inputs, asked, strict=True):
            before = found[source]
            found[source] = before if before is None or need is None else before | need
    return found


def remove_channels(
    network: Network, rules: Mapping[fx.Node, ChannelRule], needed: Mapping[fx.Node, Need | None], multiple_of: int = 1
) -> dict[str, list[str]]:
    """Remove the channels that are not needed from every layer, and the nodes that are no longer read.

    Returns:
        name of a layer -> reasons why it keeps channels that it does not need.
    """
    editor = Editor(network, multiple_of)
    present: dict[fx.Node, Tensor | None] = {}
    for node, rule in rules.items():
        present[node] = rule.rewrite(needed[node], [present[source] for source in rule.inputs], editor)
    editor.finish()
    drop_unread(network)
    return editor.notes
