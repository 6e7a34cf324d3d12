"""The channels of every layer before and after a network is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from sparsemtl.compaction.network import Network
from sparsemtl.compaction.reasons import is_reported, reason_for
from sparsemtl.compaction.report import LayerReport
from sparsemtl.compaction.rules import ChannelRule

Channels = tuple[int, int]
"""Channels that a layer reads and gives."""


class Survey:
    """What every layer was, and what it has become.

    Args:
        network: a network of which nothing was cut yet.
    """

    def __init__(self, network: Network) -> None:
        self.before: dict[str, tuple[str, Channels]] = {}
        for name, module in _layers(network):
            self.before.setdefault(name, (type(module).__name__, channels_of(module)))
        self.why: dict[str, str] = {}

    def explain(self, network: Network, rules: Mapping[fx.Node, ChannelRule]) -> None:
        """Note what is in the way of cutting, by the rules for a network whose norms were folded."""
        free = network.free()
        for node in network.graph.nodes:
            if node.op == "call_module" and node.target in self.before:
                self.why[node.target] = reason_for(node, network, rules, free)
        left = {node.target for node in network.graph.nodes}
        self.why |= dict.fromkeys((name for name in self.before if name not in left), "part of the layer before it")

    def layers(self, network: Network) -> tuple[LayerReport, ...]:
        """Return what became of every layer of a network that was cut."""
        after = {name: channels_of(module) for name, module in _layers(network)}
        return tuple(self._layer(name, after.get(name)) for name in self.before)

    def _layer(self, name: str, after: Channels | None) -> LayerReport:
        kind, before = self.before[name]
        inputs, outputs = zip(before, after or (0, 0), strict=True)
        return LayerReport(name, kind, inputs, outputs, self.why[name], removed=after is None)


def _layers(network: Network) -> list[tuple[str, nn.Module]]:
    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    return [
        (str(node.target), network.modules[node.target]) for node in nodes if is_reported(network.modules[node.target])
    ]


_WIDTHS = (
    ("in_channels", "out_channels"),
    ("in_features", "out_features"),
    ("input_size", "hidden_size"),
    ("num_embeddings", "embedding_dim"),
)
_WIDTH = ("num_features", "num_channels", "embed_dim", "num_parameters", "d_model")


def channels_of(module: Any) -> Channels:
    """Channels that a layer reads and gives, (0, 0) if it does not tell."""
    for reads, gives in _WIDTHS:
        if isinstance(getattr(module, reads, None), int):
            return getattr(module, reads), int(getattr(module, gives, 0))
    width = next((getattr(module, name) for name in _WIDTH if isinstance(getattr(module, name, None), int)), 0)
    return width, width
