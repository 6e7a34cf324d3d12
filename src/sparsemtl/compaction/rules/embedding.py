"""Embeddings: every channel of the output is a column of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.operations import operand, torch_class
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, UnknownRule, on_last_axis, rank_of


class Embedding(ChannelRule):
    """Rule of an embedding, or of sums, means or maxima over bags of entries.

    Args:
        node: see `ChannelRule`.
        layout: see `ChannelRule`.
        layer: the module.
    """

    def __init__(self, node: fx.Node, layout: Layout, layer: Any) -> None:
        super().__init__(node, node.all_input_nodes, layout)
        self.layer = layer

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return the columns with one value for all words; of bags, which may be empty, zeros alone."""
        table: Tensor = self.layer.weight.detach()
        known = (table == table[:1]).all(0) & (len(table) > 0)
        if torch_class(self.layer) is nn.EmbeddingBag:
            known &= (table == 0).all(0)
        value = table[0] if len(table) else table.new_zeros(table.shape[1])
        return Constants(known.cpu(), value.double().cpu())

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return all channels of the numbers of words."""
        return [None if layout.channels is None else Need.all(layout.channels) for layout in inputs]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Remove columns that are not carried; columns that are only carried become zero."""
        assert out is not None
        table: Tensor = self.layer.weight.detach().clone()
        table[:, ~out.live] = 0
        table = table[:, out.carried].contiguous()
        self.layer.weight = nn.Parameter(table, requires_grad=self.layer.weight.requires_grad)
        self.layer.embedding_dim = table.shape[1]
        return out.carried


def embedding(site: Site) -> ChannelRule | None:
    """Return the rule of `nn.Embedding` and `nn.EmbeddingBag`."""
    source = operand(site.node)
    layer: Any = site.module
    if source is None or layer is None:
        return None
    bags = torch_class(layer) is nn.EmbeddingBag
    rank = 2 if bags else rank_of(source, site.layouts[source])
    layout = on_last_axis(rank if bags or rank is None else rank + 1, int(layer.embedding_dim))
    if layer.max_norm is not None:
        why = "its rows are scaled by their norm over all columns (max_norm)"
        return UnknownRule(site.node, site.node.all_input_nodes, layout, why=why)
    if layer not in site.free:
        return UnknownRule(site.node, site.node.all_input_nodes, layout)
    return Embedding(site.node, layout, layer)
