"""Convolutions and norms whose channels are computed in groups: whole groups are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.operations import CONVOLUTIONS, operand, torch_class
from sparsemtl.compaction.rules.dense import WORTH, pads_zeros, places_of
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, UnknownRule, kept


class _Grouped(ChannelRule):
    """Rule of a convolution of several groups.

    Groups of which nothing is needed are removed. All others have as many inputs and outputs as the widest of them:
    channels that change nothing fill them up.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        layer: the module.
    """

    binds = True

    def __init__(self, node: fx.Node, source: fx.Node, layout: Layout, layer: Any) -> None:
        super().__init__(node, [source], layout)
        self.layer, self.groups = layer, int(layer.groups)
        weight: Tensor = layer.weight.detach()
        self.matrix = weight.clone().view(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        own = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()
        self.bias: Tensor = own

    def constants(self, *inputs: Constants | None) -> Constants:
        """Fold the constants that are read into the bias, if all positions read them; return the rows of zeros."""
        (read,) = inputs
        if read is not None:
            known = read.known & (read.value == 0) if pads_zeros(self.layer) else read.known
            value = torch.where(known, read.value, 0).to(self.matrix).view(self.groups, -1)
            self.bias += torch.einsum("goik,gi->go", self.matrix, value).flatten()
            gone = known.view(self.groups, 1, -1, 1).to(self.matrix.device)
            self.matrix.masked_fill_(gone, 0)
        return Constants((self.matrix == 0).flatten(2).all(2).flatten().cpu(), self.bias.double().cpu())

    def _needed(self, out: Need) -> Tensor:
        """Return the inputs on which a live row has a weight, (groups, inputs per group), bool."""
        read = (self.matrix != 0).any(3).cpu()
        return (read & out.live.view(self.groups, -1, 1)).any(1)

    def _filled(self, out: Need) -> tuple[Tensor, Tensor]:
        """Return inputs and outputs to keep, (groups, channels per group), bool, as many in each group that is kept."""
        outputs, needed = out.carried.view(self.groups, -1), self._needed(out)
        left = outputs.any(1)
        return _filled(needed, left), _filled(outputs, left)

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the inputs that are needed, and those that fill up their groups."""
        if out is None or inputs[0].channels is None:
            return [None]
        return [Need(self._needed(out).flatten(), self._filled(out)[0].flatten())]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Remove whole groups, and as many channels of the others as each of them can spare."""
        assert out is not None
        columns = kept(present[0], self.layer.in_channels).view(self.groups, -1)
        wanted, rows = self._filled(out)
        dead = ~out.live.view(self.groups, -1)
        if not torch.equal(columns, wanted):
            if columns.all() and not self._worth_selecting(wanted, rows):
                wanted, rows = torch.ones_like(wanted), torch.ones_like(rows)
            else:
                entries = wanted[columns]
                source = self.inputs[0]
                chosen = editor.select(source, entries, 1, self.matrix.device)
                self.node.replace_input_with(source, chosen)
        self._note(out, wanted, rows, editor)
        self.matrix[dead] = 0
        self.bias[dead.flatten()] = 0
        self._store(wanted, rows)
        return rows.flatten()

    def _note(self, out: Need, columns: Tensor, rows: Tensor, editor: Editor) -> None:
        """Note how many channels fill up groups."""
        more = int(rows.sum()) - int(out.live.sum()), int(columns.sum()) - int(self._needed(out).sum())
        if any(more):
            text = f"{more[0]} outputs and {more[1]} inputs fill up groups, which are all as wide as the widest"
            editor.note(self.node, text)

    def _worth_selecting(self, wanted: Tensor, rows: Tensor) -> bool:
        """Return whether copying the channels that are left costs less than multiplying those that are gone."""
        groups = int(rows.any(1).sum())
        left = int(wanted.sum()) * int(rows.sum()) // max(groups, 1)
        whole = wanted.numel() * rows.shape[1]
        return (whole - left) * places_of(self.layer) > WORTH * int(wanted.sum())

    def _store(self, columns: Tensor, rows: Tensor) -> None:
        """Keep these inputs and outputs, as many in each group that has any."""
        left = rows.any(1)
        parts = [self.matrix[group][rows[group]][:, columns[group]] for group in left.nonzero().flatten().tolist()]
        weight, layer = torch.cat(parts), self.layer
        trained = layer.weight.requires_grad
        layer.groups = len(parts)
        layer.in_channels, layer.out_channels = int(columns.sum()), int(rows.sum())
        shape = (*weight.shape[:2], *layer.kernel_size)
        layer.weight = nn.Parameter(weight.reshape(shape).contiguous(), requires_grad=trained)
        if layer.bias is not None or self.bias.any():
            layer.bias = nn.Parameter(self.bias[rows.flatten()], requires_grad=trained)


def _filled(chosen: Tensor, left: Tensor) -> Tensor:
    """Return some channels, with others up to as many in every group as in the one with most, at least one.

    Args:
        chosen: (groups, channels per group), bool.
        left: (groups,), bool: the groups that are kept.
    """
    count = max(1, int(chosen.sum(1).max()))
    order = torch.argsort((~chosen).long(), dim=1, stable=True)[:, :count]
    filled = torch.zeros_like(chosen).scatter_(1, order, torch.ones_like(order, dtype=torch.bool))
    return filled & left[:, None]


def grouped(site: Site) -> ChannelRule | None:
    """Return the rule of convolutions of several groups."""
    source, layer = operand(site.node), site.module
    if source is None or layer is None or len(site.node.all_input_nodes) != 1 or layer.groups == 1:
        return None
    layout, read = Layout(CONVOLUTIONS[torch_class(layer)], int(layer.out_channels)), site.layouts[source]  # type: ignore[arg-type]
    if isinstance(layer, _ConvTransposeNd):
        return UnknownRule(site.node, [source], layout, why=f"a transposed convolution of {layer.groups} groups")
    fits = read.channels is None or (read.axis == 1 and read.whole and read.channels == layer.in_channels)
    return _Grouped(site.node, source, layout, layer) if fits and layer in site.free else None


class _GroupNorm(ChannelRule):
    """Rule of a group norm: a group whose outputs nothing needs is removed; all others keep their channels.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        layer: the module.
    """

    passes_on = True
    binds = True

    def __init__(self, node: fx.Node, source: fx.Node, layout: Layout, layer: Any) -> None:
        super().__init__(node, [source], layout)
        self.layer, self.groups = layer, int(layer.num_groups)

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the shifts of channels with a scale of zero."""
        scale, shift = self.layer.weight, self.layer.bias
        return None if scale is None else Constants((scale.detach() == 0).cpu(), shift.detach().double().cpu())

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return all channels of the groups that are needed."""
        assert out is not None
        scale = self.layer.weight
        live = out.live if scale is None else out.live & (scale.detach() != 0).cpu()
        return [Need(self._whole(live), self._whole(out.carried))]

    def _whole(self, channels: Tensor) -> Tensor:
        """Return all channels of the groups that contain some."""
        groups = channels.view(self.groups, -1)
        return groups.any(1, keepdim=True).expand_as(groups).flatten()

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Keep the groups that the input still has."""
        assert out is not None
        left = kept(present[0], len(out.live))
        if not torch.equal(self._whole(left), left):
            wanted, source = self._whole(out.carried), self.inputs[0]
            chosen = editor.select(source, wanted[left], self.layout.axis, editor.device())
            self.node.replace_input_with(source, chosen)
            left = wanted
        layer = self.layer
        layer.num_groups = int(left.view(self.groups, -1).any(1).sum())
        layer.num_channels = int(left.sum())
        for name in ("weight", "bias"):
            tensor = getattr(layer, name)
            if tensor is not None:
                setattr(layer, name, nn.Parameter(tensor.detach()[left], requires_grad=tensor.requires_grad))
        if int(left.sum()) > int(out.live.sum()):
            editor.note(self.node, "channels of a group are normalized together")
        return left


def group_norm(site: Site) -> ChannelRule | None:
    """Return the rule of group norms on axis 1."""
    source, layer = operand(site.node), site.module
    layout = site.layouts[source] if source is not None else Layout()
    fits = layout.whole and layout.axis == 1 and layout.rank is not None
    if source is None or layer is None or layer not in site.free or not fits:
        return None
    return _GroupNorm(site.node, source, layout, layer) if layout.channels == layer.num_channels else None
