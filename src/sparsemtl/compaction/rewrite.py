"""Forward through the graph: cut what nobody needs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from sparsemtl.compaction.channels import Need
from sparsemtl.compaction.network import Network
from sparsemtl.compaction.rules import ChannelRule, Editor
from sparsemtl.compaction.tidy import drop_unread


def cut(network: Network, rules: Mapping[fx.Node, ChannelRule], needed: Mapping[fx.Node, Need | None]) -> None:
    """Make every layer as narrow as what is needed of it, and remove nodes that nobody reads any more."""
    editor = Editor(network)
    present: dict[fx.Node, Tensor | None] = {}
    for node, rule in rules.items():
        present[node] = rule.rewrite(needed[node], [present[source] for source in rule.inputs], editor)
    editor.finish()
    drop_unread(network)
