"""Batch norms become part of the layers before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.compaction.calls import operand
from sparsemtl.compaction.network import Network
from sparsemtl.compaction.ops import CONVOLUTIONS, NORMS, torch_class
from sparsemtl.compaction.rules import ChannelRule
from sparsemtl.compaction.rules.scaling import affine_of


def fold_norms(network: Network, rules: Mapping[fx.Node, ChannelRule]) -> None:
    """Multiply scales of batch norms into the weights of layers whose output nothing else reads."""
    free = network.free()
    for node in list(network.graph.nodes):
        norm, source = network.module(node), operand(node)
        if source is None or torch_class(norm) not in NORMS or norm not in free or len(source.users) > 1:
            continue
        layer = network.module(source)
        if layer in free and _can_take(layer, rules[source].layout.rank) and _fold(layer, norm):
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)


def _can_take(layer: Any, rank: int | None) -> bool:
    kind = torch_class(layer)
    if kind is nn.Linear:
        return rank == 2
    return kind in CONVOLUTIONS and not (isinstance(layer, _ConvTransposeNd) and layer.groups > 1)


def _fold(layer: Any, norm: Any) -> bool:
    """Change the layer; False if the norm is not the same for all batches, or not of the layer's channels."""
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
    return True
