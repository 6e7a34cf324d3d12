"""Backward through the graph: what is needed of every tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from sparsemtl.compaction.channels import Need
from sparsemtl.compaction.rules import ChannelRule


def needs(rules: Mapping[fx.Node, ChannelRule]) -> dict[fx.Node, Need | None]:
    """What later nodes ask of every node: a channel is needed if one of them has a weight on it that counts.

    Args:
        rules: of the nodes, in order.

    Returns:
        node -> what is needed of its output, None where no channels are known.
    """
    found: dict[fx.Node, Need | None] = {
        node: None if rule.layout.channels is None else Need.nothing(rule.layout.channels)
        for node, rule in rules.items()
    }
    for node, rule in reversed(list(rules.items())):
        out = found[node]
        found[node] = out = None if out is None else out.settled()
        asked = rule.needs(out, *(rules[source].layout for source in rule.inputs))
        for source, need in zip(rule.inputs, asked, strict=True):
            before = found[source]
            found[source] = before if before is None or need is None else before | need
    return found
