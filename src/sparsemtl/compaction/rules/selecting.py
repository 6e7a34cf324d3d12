"""Selections of channels that an earlier compaction made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from sparsemtl.compaction.calls import operand
from sparsemtl.compaction.channels import Constants, Layout, Need
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, kept
from sparsemtl.compaction.select import Select


class ChannelSelection(ChannelRule):
    """Some channels of the input, and constant ones.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        layer: the module.
        channels: input channels.
    """

    passes_on = True

    def __init__(self, node: fx.Node, source: fx.Node, layout: Layout, layer: Select, channels: int) -> None:
        super().__init__(node, [source], layout)
        self.layer = layer
        self.index = layer.index.cpu()
        self.channels = channels

    def constants(self, *inputs: Constants | None) -> Constants:
        """Its own and those of the selected channels."""
        own = self.layer.constants
        value = torch.zeros(0) if own is None else own.double().cpu()
        read = inputs[0] or Constants.none(self.channels)
        known = torch.cat([read.known, torch.ones(len(value), dtype=torch.bool)])
        return Constants(known[self.index], torch.cat([read.value, value])[self.index])

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """The selected channels that are needed."""
        assert out is not None
        return [Need(self._selected_from(out.live), self._selected_from(out.carried))]

    def _selected_from(self, outputs: Tensor) -> Tensor:
        """The input channels that some of the outputs are copies of."""
        chosen = self.index[outputs]
        found = torch.zeros(self.channels, dtype=torch.bool)
        found[chosen[chosen < self.channels]] = True
        return found

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Select the channels that are needed, from where they are now."""
        assert out is not None
        mask = kept(present[0], self.channels)
        constants = torch.arange(0 if self.layer.constants is None else len(self.layer.constants))
        places = torch.cat([mask.cumsum(0) - 1, mask.sum() + constants])
        self.layer.index = places[self.index[out.carried]].to(self.layer.index.device)
        return out.carried


def selection(site: Site) -> ChannelRule | None:
    """The rule of `Select` on channels of one entry each."""
    source, layer = operand(site.node), site.module
    if source is None or not isinstance(layer, Select) or layer not in site.free:
        return None
    layout = site.layouts[source]
    if not layout.whole or layout.channels is None or layer.axis != layout.axis:
        return None
    return ChannelSelection(site.node, source, replace(layout, channels=len(layer.index)), layer, layout.channels)
