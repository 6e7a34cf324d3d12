"""Forward through the graph: channels that are the same whatever the network reads move into later biases."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from sparsemtl.compaction.channels import Constants
from sparsemtl.compaction.rules import ChannelRule


def absorb_constants(rules: Mapping[fx.Node, ChannelRule]) -> None:
    """Let layers take constants that they read into their weights, so that they do not read them any more."""
    found: dict[fx.Node, Constants | None] = {}
    for node, rule in rules.items():
        found[node] = rule.constants(*(found[source] for source in rule.inputs))
