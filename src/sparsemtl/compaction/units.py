"""Units that compaction can remove: channels, attention heads and neurons, each with all weights that read it.

The channels of all tensors in a network's graph are joined where an operation hands them on: through norms and
activations, residual additions, concatenations, gates, the entries of a head. What is joined is a unit. Convolutions
and linear layers read units and make others. A unit whose readers have no weight on it is one that `compact` removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.compaction.channels import Need
from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.pipeline import measured
from sparsemtl.compaction.rules import ChannelRule, rules_for
from sparsemtl.compaction.rules.dense import Dense
from sparsemtl.compaction.rules.embedding import Embedding
from sparsemtl.compaction.rules.parameter import OwnTensor
from sparsemtl.compaction.trace import root_of
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.swap import unwrapped

FIXED = -1
"""Number in place of a unit's, for channels that cannot be removed."""


@dataclass(frozen=True, eq=False)
class LayerUnits:
    """Layer with the units that it reads and makes.

    Attributes:
        weight: name of its weight in the model; "" for a layer that reads none of the units.
        transposed: the weight's input channels lie on its first axis, not on its second one.
        reads: (input channels,), unit of each; -1 for those that cannot be removed. Empty for a depthwise convolution.
        makes: (output channels,), unit of each, likewise.
        macs: multiply-adds of one sample with all channels.
    """

    weight: str
    transposed: bool
    reads: Tensor
    makes: Tensor
    macs: int

    def columns(self, weight: Tensor) -> Tensor:
        """Return a view of the weight, (input channels, ...), (outputs, inputs, ...) before."""
        if self.transposed:
            return weight
        by_channel = weight.unflatten(1, (len(self.reads), -1)) if weight.ndim == 2 else weight
        return by_channel.transpose(0, 1)

    def work(self, left: Tensor) -> tuple[float, float]:
        """Return the fractions of the input and output channels that are left, 1 for a layer without any.

        Args:
            left: (units,), bool.
        """
        whole = torch.cat([left, left.new_ones(1)])  # the last entry stands for channels that cannot be removed
        reads, makes = (float(whole[ids].double().mean()) if len(ids) else 1.0 for ids in (self.reads, self.makes))
        return reads, makes


@dataclass(frozen=True, eq=False)
class Units:
    """Units of a model.

    Attributes:
        count: number of units.
        layers: convolutions and linear layers, in the order of the computation.
    """

    count: int
    layers: tuple[LayerUnits, ...]

    def readers(self) -> Iterator[LayerUnits]:
        """Yield the layers that read units."""
        return (layer for layer in self.layers if layer.weight)

    def macs(self, left: Tensor | None = None) -> float:
        """Return the multiply-adds of one sample with the units that are left, all by default.

        Args:
            left: (units,), bool.
        """
        left = torch.ones(self.count, dtype=torch.bool) if left is None else left
        works = ((layer.macs, *layer.work(left)) for layer in self.layers)
        return sum(macs * reads * makes for macs, reads, makes in works)

    def savings(self, left: Tensor) -> Tensor:
        """Return the multiply-adds that the removal of each unit saves, (units,); of those left, one at a time.

        A layer that reads and makes the same unit counts its part of the work twice.
        """
        saved = torch.zeros(self.count + 1, dtype=torch.float64)
        for layer in self.layers:
            reads, makes = layer.work(left)
            for ids, other in ((layer.reads, makes), (layer.makes, reads)):
                if len(ids):
                    saved.index_add_(
                        0, ids % len(saved), torch.full((len(ids),), layer.macs * other / len(ids), dtype=torch.float64)
                    )
        return saved[:-1]

    def state(self) -> list[list[Any]]:
        """Return the layers as plain values and tensors, for a checkpoint."""
        return [[each.weight, each.transposed, each.reads, each.makes, each.macs] for each in self.layers]

    @classmethod
    def of_state(cls, state: Sequence[Sequence[Any]]) -> Units:
        """Return the units of a state."""
        layers = tuple(LayerUnits(*values) for values in state)
        ids = [ids for layer in layers for ids in (layer.reads, layer.makes)]
        return cls(int(torch.cat(ids).max()) + 1 if ids else 0, layers)


@torch.inference_mode(False)
@torch.no_grad()
@torch.random.fork_rng(devices=[])
def removable_units(model: nn.Module, example_inputs: Any = None) -> Units:
    """Return the units of a model.

    A unit that a layer reads whose weight is frozen, computed from other parameters or used twice is none.

    Args:
        model: a `MultiTaskModel`, all of whose tasks are computed, or any other module. It is not changed.
        example_inputs: as for `compact`.

    Raises:
        CompactionError: if no graph can hold what the model does, naming the part.
        ParameterError: if the model cannot be run on the example, or there is none.
    """
    model = unwrapped(model)
    own = copied(model)
    tasks = own.chosen(None) if isinstance(own, MultiTaskModel) else None
    root = root_of(own, tasks, alone=False, leaf_modules=())
    network, macs = measured(root, example_inputs, single=tasks is not None)
    rules = rules_for(network)
    joined = _Joined()
    channels: dict[fx.Node, list[int] | None] = {}
    for node, rule in rules.items():
        channels[node] = _channels_of(rule, [channels[source] for source in rule.inputs], rules, joined)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [
        _Layer(rule, f"{node.target}.weight", channels[rule.inputs[0]], channels[node], macs[str(node.target)])
        for node, rule in rules.items()
        if node.op == "call_module" and str(node.target) in macs
    ]
    for layer in layers:
        if layer.weight not in trained or not layer.is_dense:
            joined.fix(layer.reads if layer.is_dense else ())
    return _numbered(layers, joined)


@dataclass(frozen=True)
class _Layer:
    """Layer of the graph, with the numbers of its channels among all."""

    rule: ChannelRule
    weight: str
    source: list[int] | None
    output: list[int] | None
    macs: int

    @property
    def is_dense(self) -> bool:
        """True if every output channel may read every input channel."""
        return isinstance(self.rule, Dense)

    @property
    def reads(self) -> list[int]:
        """Channels that it mixes."""
        return (self.source or []) if self.is_dense else []


class _Joined:
    """Sets of channels that are removed together (union and find), and those that cannot be removed."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: set[int] = set()

    def new(self, count: int) -> list[int]:
        """Return new channels, each a set of its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return list(range(first, first + count))

    def find(self, channel: int) -> int:
        """Return the channel that stands for a set."""
        while self._parent[channel] != channel:
            self._parent[channel] = self._parent[self._parent[channel]]
            channel = self._parent[channel]
        return channel

    def join(self, one: int, other: int) -> None:
        """Join the sets of two channels."""
        one, other = self.find(one), self.find(other)
        self._parent[other] = one

    def fix(self, channels: Sequence[int]) -> None:
        """Note that channels cannot be removed."""
        self._fixed.update(channels)

    def fixed(self) -> set[int]:
        """Return what stands for the sets that cannot be removed."""
        return {self.find(channel) for channel in self._fixed}


def _channels_of(
    rule: ChannelRule,
    inputs: Sequence[list[int] | None],
    rules: Mapping[fx.Node, ChannelRule],
    joined: _Joined,
) -> list[int] | None:
    """Return the channels of a node's output, joined with those that it hands on."""
    count = rule.layout.channels
    layouts = [rules[source].layout for source in rule.inputs]
    own = None if count is None else joined.new(count)
    if isinstance(rule, (Dense, Embedding, OwnTensor)):
        return own
    if own is None or not rule.passes_on:
        joined.fix(own or ())
        needs = rule.needs(None if count is None else Need.all(count), *layouts)
        for channels, need in zip(inputs, needs, strict=True):
            if channels is not None and need is not None:
                joined.fix([channels[i] for i in need.carried.nonzero().flatten().tolist()])
        return own
    for channels, outputs in zip(inputs, _readers(rule, layouts, len(own)), strict=True):
        for channel, readers in zip(channels or (), outputs, strict=True):
            if 1 < len(readers) == len(own):
                joined.fix([channel])  # one for all, such as a map of weights of positions
            else:
                for reader in readers:
                    joined.join(channel, own[reader])
    return own


def _readers(rule: ChannelRule, layouts: Sequence[Any], count: int) -> list[list[list[int]]]:
    """Return for every input, for each of its channels, the output channels that need it.

    The outputs are asked for by the digits of their numbers; a channel that only one of them needs is told by these.
    """
    numbers = torch.arange(count)
    found = [torch.zeros(layout.channels or 0, dtype=torch.int64) for layout in layouts]
    reached = [torch.zeros(len(each), dtype=torch.bool) for each in found]
    several = [torch.zeros(len(each), dtype=torch.bool) for each in found]
    for digit in range(max(1, (count - 1).bit_length())):
        zero, one = (_needed(rule, (numbers >> digit) & 1 == value, layouts) for value in (0, 1))
        for i, (without, having) in enumerate(zip(zero, one, strict=True)):
            several[i] |= without & having
            reached[i] |= without | having
            found[i] += having.long() << digit
    if any(bool(each.any()) for each in several):
        alone = [_needed(rule, numbers == number, layouts) for number in range(count)]
        return [[[o for o in range(count) if alone[o][i][c]] for c in range(len(each))] for i, each in enumerate(found)]
    return [
        [[number] if there else [] for number, there in zip(own.tolist(), any_of.tolist(), strict=True)]
        for own, any_of in zip(found, reached, strict=True)
    ]


def _needed(rule: ChannelRule, outputs: Tensor, layouts: Sequence[Any]) -> list[Tensor]:
    """Return the channels of every input that some outputs need, none for an input without channels."""
    needs = rule.needs(Need.of(outputs), *layouts)
    return [
        torch.zeros(layout.channels or 0, dtype=torch.bool) if need is None else need.live | need.carried
        for need, layout in zip(needs, layouts, strict=True)
    ]


def _numbered(layers: Sequence[_Layer], joined: _Joined) -> Units:
    """Return the units: sets of channels that a layer reads, without those that cannot be removed."""
    fixed = joined.fixed()
    read = dict.fromkeys(joined.find(channel) for layer in layers for channel in layer.reads)
    numbers = {channel: number for number, channel in enumerate(channel for channel in read if channel not in fixed)}

    def units(channels: Sequence[int]) -> Tensor:
        return torch.tensor([numbers.get(joined.find(channel), FIXED) for channel in channels], dtype=torch.int64)

    found = []
    for layer in layers:
        reads, makes = units(layer.reads), units(layer.output or ())
        transposed = isinstance(getattr(layer.rule, "layer", None), _ConvTransposeNd)
        weight = layer.weight if bool((reads != FIXED).any()) else ""
        found.append(LayerUnits(weight, transposed, reads, makes, layer.macs))
    return Units(len(numbers), tuple(found))
