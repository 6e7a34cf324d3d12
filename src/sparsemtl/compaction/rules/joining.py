"""Concatenations of channels, and copies of channels at other places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.network import Select
from sparsemtl.compaction.graph.operations import argument, operand
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, kept


class _Concatenation(ChannelRule):
    """Rule of a concatenation: the channels of every input, one after the other.

    Args:
        node: see `ChannelRule`.
        inputs: see `ChannelRule`; one that is there twice counts twice.
        layout: see `ChannelRule`.
        widths: channels of each.
    """

    passes_on = True

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], layout: Layout, widths: Sequence[int]) -> None:
        super().__init__(node, inputs, layout)
        self.widths = list(widths)

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return the constants of the inputs."""
        found = [each or Constants.none(width) for each, width in zip(inputs, self.widths, strict=True)]
        return Constants(torch.cat([each.known for each in found]), torch.cat([each.value for each in found]))

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the part of the need that falls on each input."""
        assert out is not None
        parts = zip(out.live.split(self.widths), out.carried.split(self.widths), strict=True)
        return [Need(live, carried) for live, carried in parts]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Drop inputs of which nothing is needed; keep all channels of the others."""
        assert out is not None
        taken, masks = [], []
        for source, mask, width, carried in zip(
            self.inputs, present, self.widths, out.carried.split(self.widths), strict=True
        ):
            if carried.any():
                taken.append(source)
            masks.append(kept(mask, width) if carried.any() else torch.zeros(width, dtype=torch.bool))
        self.node.args = (taken, self.layout.axis)
        self.node.kwargs = {}
        return torch.cat(masks)


def concatenation(site: Site) -> ChannelRule | None:
    """Return the rule of `torch.cat` along the channels."""
    inputs = argument(site.node, 0, "tensors", ())
    axis = argument(site.node, 1, "dim", 0)
    listed = isinstance(inputs, (tuple, list)) and bool(inputs) and all(isinstance(node, fx.Node) for node in inputs)
    if not isinstance(axis, int) or not listed:
        return None
    layouts = [site.layouts[node] for node in inputs]
    first = layouts[0]
    same = len({replace(layout, channels=0) for layout in layouts}) == 1
    if not same or not all(layout.whole for layout in layouts) or first.rank is None:
        return None
    if axis % first.rank != first.axis:
        return None
    widths = [layout.channels for layout in layouts if layout.channels is not None]
    return _Concatenation(site.node, inputs, replace(first, channels=sum(widths)), widths)


class ChannelCopies(ChannelRule):
    """Rule of a node each channel of which is a copy of a channel of its input, or constant.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        index: (channels of the output,), input channel of each; from the number of input channels on, a constant.
        channels: input channels.
        layer: the module, if the node calls a `Select`.
    """

    passes_on = True

    def __init__(
        self,
        node: fx.Node,
        source: fx.Node,
        layout: Layout,
        index: Tensor,
        channels: int,
        layer: Select | None = None,
    ) -> None:
        super().__init__(node, [source], layout)
        self.index = index
        self.channels = channels
        self.layer = layer

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return its own constants and those of the copied channels."""
        own = None if self.layer is None else self.layer.constants
        value = torch.zeros(0) if own is None else own.double().cpu()
        read = inputs[0] or Constants.none(self.channels)
        known = torch.cat([read.known, torch.ones(len(value), dtype=torch.bool)])
        return Constants(known[self.index], torch.cat([read.value, value])[self.index])

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the channels that are needed of the input."""
        assert out is not None
        return [Need(self._copied_to(out.live), self._copied_to(out.carried))]

    def _copied_to(self, outputs: Tensor) -> Tensor:
        """Return the input channels of which some outputs are copies."""
        chosen = self.index[outputs]
        found = torch.zeros(self.channels, dtype=torch.bool)
        found[chosen[chosen < self.channels]] = True
        return found

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Select the channels that are needed, from where they are now."""
        assert out is not None
        mask = kept(present[0], self.channels)
        own = None if self.layer is None else self.layer.constants
        places = torch.cat([mask.cumsum(0) - 1, mask.sum() + torch.arange(0 if own is None else len(own))])
        index = places[self.index[out.carried]]
        if self.layer is not None:
            self.layer.index = index.to(self.layer.index.device)
        elif not (mask.all() and out.carried.all()):
            editor.become(self.node, self.inputs[0], Select(index.to(editor.device()), self.layout.axis))
        return out.carried


def selection(site: Site) -> ChannelRule | None:
    """Return the rule of `Select` on channels of one entry each."""
    source, layer = operand(site.node), site.module
    if source is None or not isinstance(layer, Select) or layer not in site.free:
        return None
    layout = site.layouts[source]
    if not layout.whole or layout.channels is None or layer.axis != layout.axis:
        return None
    made = replace(layout, channels=len(layer.index))
    return ChannelCopies(site.node, source, made, layer.index.cpu(), layout.channels, layer)
