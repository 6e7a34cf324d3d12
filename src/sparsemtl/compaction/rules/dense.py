"""Convolutions and linear layers, whose every output channel may read every input channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.compaction.graph.channels import Constants, Layout, Need, first_channel, rounded
from sparsemtl.compaction.graph.network import Network, Select, WeightCut
from sparsemtl.compaction.graph.operations import CONVOLUTIONS, operand, torch_class
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, UnknownRule, kept

WORTH = 19
"""Multiply-adds that must be saved for each number copied, to copy some channels in front of a layer (measured)."""


class Dense(ChannelRule):
    """Rule of a convolution of one group, a transposed one, or a linear layer.

    Its weight is looked at as a matrix (outputs, inputs, K) of the layer's channels; K are the places of a kernel, or
    the positions of a flattened channel.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        layer: the module.
        channels: input channels.
    """

    def __init__(self, node: fx.Node, source: fx.Node, layout: Layout, layer: Any, channels: int) -> None:
        super().__init__(node, [source], layout)
        self.layer = layer
        self.channels = channels
        self.transposed = isinstance(layer, _ConvTransposeNd)

    def matrix(self) -> Tensor:
        """Return a copy of the weight, (outputs, inputs, K)."""
        weight: Tensor = self.layer.weight.detach().clone()
        weight = weight.transpose(0, 1) if self.transposed else weight
        return weight.reshape(weight.shape[0], self.channels, -1)

    def bias(self) -> Tensor:
        """Return a copy of the bias, (outputs,), zeros if there is none."""
        weight: Tensor = self.layer.weight
        bias: Tensor | None = self.layer.bias
        outputs = weight.shape[1 if self.transposed else 0]
        return weight.new_zeros(outputs) if bias is None else bias.detach().clone()

    def constants(self, *inputs: Constants | None) -> Constants:
        """Fold the constants that are read into the bias; return the biases of rows of zeros."""
        (read,) = inputs
        if read is not None:
            self._absorb(read)
        matrix = self.matrix()
        rows = (matrix == 0).all(2).all(1).cpu()
        return Constants(rows, self.bias().double().cpu())

    def _absorb(self, constants: Constants) -> None:
        """Fold the constants of the input into the bias, or into one channel if positions differ."""
        matrix, bias = self.matrix(), self.bias()
        read = constants.known & (matrix != 0).any(2).any(0).cpu()
        if not read.any():
            return
        value = torch.where(constants.known, constants.value, 0).to(matrix)
        if not pads_zeros(self.layer):
            bias += torch.einsum("ock,c->o", matrix, value)
            matrix[:, read] = 0
        else:
            matrix = _merged(matrix, read, value)
        self._store(matrix, bias)

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the channels on which a live row has a weight."""
        if out is None or inputs[0].channels is None:
            return [None]
        return [Need.of(self._columns(out))]

    def _columns(self, out: Need) -> Tensor:
        return (self.matrix() != 0).any(2).cpu()[out.live].any(0)

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Remove rows that are not carried and missing columns; rows that are only carried become zero."""
        assert out is not None
        matrix, bias = self.matrix(), self.bias()
        matrix[~out.live], bias[~out.live] = 0, 0
        constant = isinstance(self.layer, nn.Linear) and bool(out.live.any()) and not matrix.any()
        if constant and editor.fix(self.node, bias[out.carried]):
            return out.carried
        columns = kept(present[0], self.channels)
        wanted = self._selected(columns, self._columns(out), int(out.carried.sum()), editor)
        rows = self._rows(matrix, bias, out.carried, editor)
        self._record(rows, wanted, matrix.shape[2], editor.network)
        self._store(matrix[rows][:, wanted], bias[rows])
        return out.carried

    def _record(self, rows: Tensor, columns: Tensor, places: int, network: Network) -> None:
        """Record which rows and columns of the weight are left, of (outputs, inputs, places)."""
        flat = columns.repeat_interleave(places) if isinstance(self.layer, nn.Linear) else columns
        left = [each.nonzero().flatten().cpu() for each in (rows, flat)]
        name = str(self.node.target)
        cut = network.cuts.get(name, WeightCut())
        network.cuts[name] = replace(cut, entries=(left[1], left[0]) if self.transposed else (left[0], left[1]))

    def _rows(self, matrix: Tensor, bias: Tensor, carried: Tensor, editor: Editor) -> Tensor:
        """Return the rows to compute; constant ones are inserted behind the layer if that is cheaper."""
        rows = (matrix != 0).any(2).any(1).cpu() & carried
        rows = rows if rows.any() else first_channel(carried)
        if self.layout.is_image:
            rows = rounded(rows, carried, editor.multiple_of)
        constant = carried & ~rows
        saved = int(constant.sum()) * int((matrix[rows] != 0).any(2).any(0).sum()) * places_of(self.layer)
        if isinstance(self.layer, nn.Linear) or saved <= WORTH * int(carried.sum() + rows.sum()):
            if constant.any():
                editor.note(self.node, f"constant outputs that stand beside others: {int(constant.sum())}")
            return carried
        values, which = bias[constant].unique(return_inverse=True)
        index = torch.zeros(len(carried), dtype=torch.int64)
        index[rows] = torch.arange(int(rows.sum()))
        index[constant] = int(rows.sum()) + which.cpu()
        editor.wider[self.node] = Select(index[carried].to(bias.device), 1, values)
        return rows

    def _selected(self, columns: Tensor, needed: Tensor, rows: int, editor: Editor) -> Tensor:
        """Return the present columns to keep; a selection goes in front of the layer if that is cheaper."""
        wanted = needed if needed.any() else first_channel(columns)
        if self.layout.is_image:
            wanted = rounded(wanted, columns, editor.multiple_of)
        left, gone = int(wanted.sum()), int((columns & ~wanted).sum())
        if not gone or not self._worth_selecting(rows, left, gone):
            if gone:
                editor.note(self.node, f"inputs with weights of zero, cheaper to read than to leave out: {gone}")
            return columns
        flat = isinstance(self.layer, nn.Linear)
        chosen = wanted[columns].repeat_interleave(self.matrix().shape[2] if flat else 1)
        source = self.inputs[0]
        selection = editor.select(source, chosen, -1 if flat else 1, self.layer.weight.device)
        self.node.replace_input_with(source, selection)
        return wanted

    def _worth_selecting(self, rows: int, left: int, gone: int) -> bool:
        """Return whether copying the channels that are left costs less than multiplying those that are gone."""
        return worth_selecting(rows, left, gone, *self.selection())

    def selection(self) -> tuple[float, int]:
        """Return the multiply-adds per row, and the numbers to copy, of one input channel at one position."""
        plain = self.transposed or isinstance(self.layer, nn.Linear)
        entries = self.layer.weight.numel() // self.channels  # outputs times K
        places = entries // self.layer.weight.shape[1 if self.transposed else 0]
        return places / (1 if plain else prod(self.layer.stride)), places if isinstance(self.layer, nn.Linear) else 1

    def _store(self, matrix: Tensor, bias: Tensor) -> None:
        """Set the layer's weights, and its widths accordingly."""
        layer, (outputs, inputs, _) = self.layer, matrix.shape
        if isinstance(layer, nn.Linear):
            weight = matrix.flatten(1)
            layer.out_features, layer.in_features = weight.shape
        else:
            weight = matrix.reshape(outputs, inputs, *layer.kernel_size)
            weight = weight.transpose(0, 1).contiguous() if self.transposed else weight
            layer.out_channels, layer.in_channels = outputs, inputs
        self.channels = inputs
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        if layer.bias is not None or bias.any():
            layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)


def worth_selecting(rows: int, left: int, gone: int, places: float, copied: int) -> bool:
    """Return whether copying some input channels in front of a layer costs less than multiplying the others.

    Args:
        rows: output channels.
        left: input channels to copy.
        gone: input channels whose weights are zero.
        places: multiply-adds per output and input channel.
        copied: numbers to copy per channel.
    """
    return rows * gone * places > WORTH * left * copied


def pads_zeros(layer: Any) -> bool:
    """Return whether a layer reads zeros beside its input: a constant channel then adds more at some positions."""
    if isinstance(layer, nn.Linear):
        return False
    if isinstance(layer, _ConvTransposeNd):
        return True
    return layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice)


def places_of(layer: Any) -> float:
    """Return the multiply-adds per output position, input channel and output channel."""
    if isinstance(layer, nn.Linear):
        return 1
    kernel: int = prod(layer.kernel_size)
    return kernel / prod(layer.stride) if isinstance(layer, _ConvTransposeNd) else kernel


def _merged(matrix: Tensor, read: Tensor, value: Tensor) -> Tensor:
    """Return a weight in which one constant channel replaces all that are read.

    Args:
        matrix: (outputs, inputs, K), weights.
        read: (inputs,), bool: constant channels with a weight.
        value: (inputs,): the constants, zero for other channels.
    """
    stand_in = value.abs().argmax()
    merged = torch.einsum("ock,c->ok", matrix, value / value[stand_in]) if value[stand_in] else None
    matrix[:, read] = 0
    if merged is not None:
        matrix[:, stand_in] = merged
    return matrix


def convolution(site: Site) -> ChannelRule | None:
    """Return the rule of convolutions of one group."""
    source, layer = operand(site.node), site.module
    if source is None or layer is None or len(site.node.all_input_nodes) != 1:
        return None
    rank = CONVOLUTIONS[torch_class(layer)]
    layout = Layout(rank, int(layer.out_channels))  # type: ignore[arg-type]
    read, channels = site.layouts[source], int(layer.in_channels)  # type: ignore[arg-type]
    fits = read.channels is None or (read.axis == 1 and read.whole and read.channels == channels)
    if layer not in site.free or layer.groups != 1 or not fits:
        return UnknownRule(site.node, [source], layout)
    return Dense(site.node, source, layout, layer, channels)


def linear(site: Site) -> ChannelRule | None:
    """Return the rule of linear layers, on the last axis of tensors of any rank."""
    source, layer = operand(site.node), site.module
    if source is None or not isinstance(layer, nn.Linear):
        return None
    read = site.layouts[source]
    layout = Layout(read.rank, layer.out_features, -1 if read.rank is None else read.rank - 1)
    channels = layer.in_features if read.channels is None else read.channels
    fits = read.channels is None or (read.last and layer.in_features % channels == 0)
    if layer not in site.free or not fits:
        return UnknownRule(site.node, [source], layout)
    return Dense(site.node, source, layout, layer, channels)
