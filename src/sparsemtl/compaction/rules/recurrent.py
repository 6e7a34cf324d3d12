"""Recurrent layers of one direction: hidden units that are zero at all positions, or that nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.channels import Constants, Layout, Need, first_channel
from sparsemtl.compaction.graph.operations import argument, operand, torch_class
from sparsemtl.compaction.rules.channelwise import Channelwise, preserved
from sparsemtl.compaction.rules.dense import WORTH
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, UnknownRule, kept, on_last_axis, rank_of

GATES: dict[type[nn.Module], tuple[int, int]] = {nn.RNN: (1, 0), nn.GRU: (3, 2), nn.LSTM: (4, 2)}
"""Class -> number of gates, and the one that makes new values."""


class _Recurrent(ChannelRule):
    """Rule of a recurrent layer, whose channels are its hidden units: those of its outputs and of its states.

    A unit stays zero from a state of zero if its new values are zero: they read neither the input nor a unit that is
    not zero, and their bias is zero.

    Args:
        node: see `ChannelRule`.
        inputs: what it reads: its input, and its first states if there are any.
        layout: see `ChannelRule`.
        layer: the module.
        channels: channels of its input.
    """

    passes_on = False

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], layout: Layout, layer: Any, channels: int) -> None:
        super().__init__(node, inputs, layout)
        self.layer, self.channels, self.units = layer, channels, int(layer.hidden_size)
        gates, self.new = GATES[torch_class(layer)]
        shape = gates, self.units, channels, -1
        self.reads: Tensor = layer.weight_ih_l0.detach().clone().view(shape)
        self.recurs: Tensor = layer.weight_hh_l0.detach().clone().view(gates, self.units, self.units)
        zeros = self.recurs.new_zeros(gates, self.units)
        own = (layer.bias_ih_l0, layer.bias_hh_l0) if layer.bias else (zeros, zeros)
        self.biases = [bias.detach().clone().view(gates, self.units) for bias in own]

    def constants(self, *inputs: Constants | None) -> Constants:
        """Fold constants of the input into the bias; return the units that are zero, of an RNN all constant ones."""
        read, *states = inputs
        if read is not None:
            value = torch.where(read.known, read.value, 0).to(self.reads)
            self.biases[0] += torch.einsum("guck,c->gu", self.reads, value)
            self.reads[:, :, read.known] = 0
        zero = self._zero(states)
        self.recurs[:, :, zero] = 0
        if torch_class(self.layer) is not nn.RNN:
            return Constants(zero, torch.zeros(self.units, dtype=torch.float64))
        alone = (self.reads == 0).flatten(2).all(2)[0] & (self.recurs == 0).all(2)[0]
        made = (self.biases[0] + self.biases[1])[0].double().cpu()
        value = made.tanh() if self.layer.nonlinearity == "tanh" else made.relu()
        return Constants(zero | alone.cpu(), torch.where(zero, 0, value))

    def _zero(self, states: Sequence[Constants | None]) -> Tensor:
        """Return the units that are zero at all positions, (units,), bool."""
        first, second = (bias[self.new] for bias in self.biases)
        if torch_class(self.layer) is nn.GRU:  # a gate scales the second bias alone
            silent = (first == 0) & (second == 0)
        else:
            rectified = torch_class(self.layer) is nn.RNN and self.layer.nonlinearity == "relu"
            silent = (first + second <= 0) if rectified else (first + second == 0)
        zero: Tensor = (silent & (self.reads[self.new] == 0).flatten(1).all(1)).cpu()
        for state in states:
            zero &= torch.zeros_like(zero) if state is None else state.known & (state.value == 0)
        own = (self.recurs[self.new] != 0).cpu()
        while (wrong := zero & own[:, ~zero].any(1)).any():
            zero &= ~wrong
        return zero

    def _live(self, out: Need) -> Tensor:
        """Return the units that change the output, also by way of others, (units,), bool."""
        live, read = out.live.clone(), (self.recurs != 0).any(0).cpu()
        while (more := read[live].any(0) & ~live).any():
            live |= more
        return live

    def _columns(self, live: Tensor) -> Tensor:
        return (self.reads != 0).any(3).any(0).cpu()[live].any(0)

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the channels of the input, and the units of the first states, that live units read."""
        assert out is not None
        live = self._live(out)
        first = None if inputs[0].channels is None else Need.of(self._columns(live))
        return [first, *(_of_state(live, layout) for layout in inputs[1:])]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Remove units that are not carried and missing columns; rows of units that are only carried become zero."""
        assert out is not None
        live = self._live(out)
        left = out.carried | live
        for tensor in (self.reads, self.recurs, *self.biases):
            tensor[:, ~live] = 0
        columns = kept(present[0], self.channels)
        wanted = self._selected(columns, self._columns(live), int(left.sum()), editor)
        for state, mask in zip(self.inputs[1:], present[1:], strict=True):
            there = kept(mask, self.units)
            if not torch.equal(there, left):
                chosen = editor.select(state, left[there], -1, self.reads.device)
                self.node.replace_input_with(state, chosen)
        editor.network.modules[str(self.node.target)] = self._cut(wanted, left)
        return left

    def _selected(self, columns: Tensor, needed: Tensor, units: int, editor: Editor) -> Tensor:
        """Return the present columns to keep; a selection goes in front of the layer if that is cheaper."""
        wanted, size = needed if needed.any() else first_channel(columns), self.reads.shape[3]
        gone = int((columns & ~wanted).sum())
        if not gone or len(self.reads) * units * gone <= WORTH * int(wanted.sum()):
            return columns
        chosen = wanted[columns].repeat_interleave(size)
        source = self.inputs[0]
        self.node.replace_input_with(source, editor.select(source, chosen, -1, self.reads.device))
        return wanted

    def _cut(self, columns: Tensor, units: Tensor) -> nn.RNNBase:
        """Return a layer with these columns and units."""
        reads = self.reads[:, units][:, :, columns].flatten(2)
        layer, count = self.layer, int(units.sum())
        biased = layer.bias or any(bool(bias.any()) for bias in self.biases)
        options = {"nonlinearity": layer.nonlinearity} if torch_class(layer) is nn.RNN else {}
        made: Any = torch_class(layer)(
            reads.shape[2], count, bias=biased, batch_first=layer.batch_first, device="meta", **options
        )
        tensors = {
            "weight_ih_l0": reads.flatten(0, 1),
            "weight_hh_l0": self.recurs[:, units][:, :, units].flatten(0, 1),
        }
        if biased:
            tensors |= {
                f"bias_{kind}_l0": bias[:, units].flatten()
                for kind, bias in zip(("ih", "hh"), self.biases, strict=True)
            }
        for name, tensor in tensors.items():
            setattr(made, name, nn.Parameter(tensor.contiguous(), requires_grad=layer.weight_ih_l0.requires_grad))
        return made.eval()  # type: ignore[no-any-return]


def _of_state(live: Tensor, layout: Layout) -> Need | None:
    if layout.channels is None:
        return None
    return Need.of(live) if layout.whole and layout.last and layout.channels == len(live) else Need.all(layout.channels)


def states_of(node: fx.Node) -> list[fx.Node]:
    """Return the first states that a recurrent layer reads; none if they are zero."""
    given = argument(node, 1, "hx", None)
    listed = given if isinstance(given, (tuple, list)) else [given]
    return [each for each in listed if isinstance(each, fx.Node)]


def recurrent(site: Site) -> ChannelRule | None:
    """Return the rule of a GRU, an LSTM or an RNN of one layer and one direction."""
    source, layer = operand(site.node), site.module
    if source is None or layer is None:
        return None
    inputs: list[fx.Node] = [source, *states_of(site.node)]
    why = _why_whole(layer)
    read = site.layouts[source]
    channels = int(layer.input_size) if read.channels is None else read.channels  # type: ignore[arg-type]
    fits = read.channels is None or (read.last and layer.input_size % channels == 0)  # type: ignore[operator]
    states = [site.layouts[each] for each in inputs[1:]]
    aligned = all(s.channels is None or (s.whole and s.last and s.channels == layer.hidden_size) for s in states)
    if why or layer not in site.free or not (fits and aligned) or len(set(inputs)) < len(inputs):
        return UnknownRule(site.node, site.node.all_input_nodes, why=why)
    layout = on_last_axis(rank_of(source, read), int(layer.hidden_size))  # type: ignore[arg-type]
    return _Recurrent(site.node, inputs, layout, layer, channels)


def _why_whole(layer: Any) -> str:
    """Return the reason why no unit of a layer can be removed, "" if one can."""
    if layer.proj_size:
        return "its outputs are projections of its hidden units (proj_size)"
    if layer.num_layers > 1 or layer.bidirectional:
        return "its layers and directions have no unit that could be removed, or their outputs are not read one by one"
    return ""


def is_recurrent(node: object, site: Site) -> bool:
    """Return whether a node is a recurrent layer, or the pair of the states of an LSTM."""
    if not isinstance(node, fx.Node):
        return False
    whole = operand(node) if node.op == "call_function" and node.args[1:] == (1,) else None
    lstm = whole is not None and torch_class(site.network.module(whole)) is nn.LSTM
    return lstm or torch_class(site.network.module(node)) in GATES


def item(site: Site) -> ChannelRule | None:
    """Return the rule of the outputs or of a state of a recurrent layer; None for items of anything else."""
    source = operand(site.node)
    if source is None or not is_recurrent(source, site):
        return None
    layout = site.layouts[source]
    if layout.channels is None or site.node.args[1] not in (0, 1):
        return UnknownRule(site.node, [source])
    return Channelwise(site.node, [source], layout, preserved)
