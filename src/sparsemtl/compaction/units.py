"""Units that compaction can remove: channels, attention heads and neurons, each with all weights that read it.

The channels of all tensors in a network's graph are joined where an operation hands them on: through norms and
activations, residual additions, concatenations, gates, the entries of a head. What is joined is a unit. Convolutions
and linear layers read units and make others. A unit whose readers have no weight on it is one that `compact` removes.

Per reader, a unit is what one layer reads of such a set: `compact` then copies the channels that are left in front of
the layer where that is worth it, and removes a channel behind the last layer that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.graph.channels import Need
from sparsemtl.compaction.graph.network import WeightCut
from sparsemtl.compaction.graph.operations import torch_class
from sparsemtl.compaction.pipeline import measured
from sparsemtl.compaction.rules import ChannelRule, rules_for
from sparsemtl.compaction.rules.dense import Dense, worth_selecting
from sparsemtl.compaction.rules.embedding import Embedding
from sparsemtl.compaction.rules.parameter import OwnTensor
from sparsemtl.compaction.tracing.trace import root_of
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.roles import is_transposed_linear
from sparsemtl.networks.swap import unwrapped

FIXED, NEVER = -1, -2
"""Numbers in place of a unit's: of channels that cannot be removed, and of entries that stand for no unit."""


Cost = Literal["macs", "weights"]
"""Multiply-adds of one sample, or the number of weights of convolutions and linear layers."""


@dataclass(frozen=True, eq=False)
class LayerUnits:
    """Layer with the units that it reads and makes.

    Attributes:
        weight: name of its weight in the model; "" for a layer that reads none of the units.
        transposed: the weight's input channels lie on its first axis, not on its second one.
        reads: (input channels,), unit of each; -1 for those that cannot be removed. Empty for a depthwise convolution.
        present: (input channels, n), units that the tensor has each channel for; -2 fills up rows.
        makes: (output channels, n), units that each is computed for, likewise.
        macs: multiply-adds of one sample with all channels.
        weights: number of its weights.
        selection: what copying channels in front of the layer saves and costs, see `Dense.selection`.
    """

    weight: str
    transposed: bool
    reads: Tensor
    present: Tensor
    makes: Tensor
    macs: int
    weights: int
    selection: tuple[float, int]

    def columns(self, weight: Tensor) -> Tensor:
        """Return a view of the weight, (input channels, ...), (outputs, inputs, ...) before."""
        axis = 0 if self.transposed else 1
        by_channel = weight.unflatten(axis, (len(self.reads), -1)) if weight.ndim == 2 else weight
        return by_channel if self.transposed else by_channel.transpose(0, 1)

    def work(self, left: Tensor) -> tuple[float, float]:
        """Return the fractions of the input and output channels that are left, 1 for a layer without any.

        Args:
            left: (units,), bool.
        """
        whole = torch.cat([left, torch.tensor([False, True])])  # the entries of `NEVER` and of `FIXED`
        makes = whole[self.makes].any(1)
        read = whole[self.reads]
        there = whole[self.present].any(1) | read
        gone = int((there & ~read).sum())
        if gone and not worth_selecting(int(makes.sum()), int(read.sum()), gone, *self.selection):
            read = there
        return _fraction(read), _fraction(makes)


def _fraction(channels: Tensor) -> float:
    return float(channels.double().mean()) if len(channels) else 1.0


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

    def cost(self, left: Tensor | None = None, of: Cost = "macs") -> float:
        """Return the multiply-adds of one sample, or the weights, with the units that are left, all by default.

        Args:
            left: (units,), bool.
            of: `macs` or `weights`.
        """
        left = torch.ones(self.count, dtype=torch.bool) if left is None else left
        works: Iterator[tuple[int, float, float]] = ((getattr(layer, of), *layer.work(left)) for layer in self.layers)
        return sum(whole * reads * makes for whole, reads, makes in works)

    def savings(self, left: Tensor, of: Cost = "macs") -> Tensor:
        """Return what the removal of each unit saves, (units,); of those left, one at a time.

        A layer that reads and makes the same unit counts its part twice. The output channels that are computed for
        several units are saved by each of them in equal parts.
        """
        whole = torch.cat([left, torch.tensor([False, True])])
        saved = torch.zeros(len(whole), dtype=torch.float64)
        for layer in self.layers:
            reads, makes = layer.work(left)
            cost = getattr(layer, of)
            if len(layer.reads):
                part = torch.full((len(layer.reads),), cost * makes / len(layer.reads), dtype=torch.float64)
                saved.index_add_(0, layer.reads % len(whole), part)
            if len(layer.makes):
                used = whole[layer.makes]
                part = used * (cost * reads / len(layer.makes) / used.sum(1, keepdim=True).clamp_min(1))
                saved.index_add_(0, (layer.makes % len(whole)).flatten(), part.double().flatten())
        return saved[:-2]

    def state(self) -> list[list[Any]]:
        """Return the layers as plain values and tensors, for a checkpoint."""
        return [[getattr(each, field.name) for field in fields(LayerUnits)] for each in self.layers]

    @classmethod
    def of_state(cls, state: Sequence[Sequence[Any]]) -> Units:
        """Return the units of a state."""
        layers = tuple(LayerUnits(*values) for values in state)
        ids = [ids.flatten() for layer in layers for ids in (layer.reads, layer.present, layer.makes)]
        return cls(int(torch.cat(ids).max()) + 1 if ids else 0, layers)


@torch.inference_mode(False)
@torch.no_grad()
@torch.random.fork_rng(devices=[])
def removable_units(model: nn.Module, example_inputs: Any = None, *, per_reader: bool = False) -> Units:
    """Return the units of a model.

    A unit that a layer reads whose weight is frozen, computed from other parameters or used twice is none.

    Args:
        model: a `MultiTaskModel`, all of whose tasks are computed, or any other module. It is not changed.
        example_inputs: as for `compact`.
        per_reader: a unit is what one layer reads; by default it is what all layers read.

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
    handed: dict[fx.Node, list[list[list[int]]]] = {}
    for node, rule in rules.items():
        channels[node], handed[node] = _channels_of(rule, [channels[source] for source in rule.inputs], rules, joined)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = []
    for node, rule in rules.items():
        if node.op == "call_module" and (target := str(node.target)) in macs:
            name = network.cuts.get(target, WeightCut()).source or f"{target}.weight"
            orientation = _orientation(model, name, rule) if name in trained else None
            layers.append(_Layer(node, rule, name, orientation, channels[rule.inputs[0]], channels[node], macs[target]))
    for layer in layers:
        if layer.orientation is None:
            joined.fix(layer.reads)
    if not per_reader:
        return _numbered(layers, joined, lambda _, channel: channel, None)
    weights = {layer.node: layer.weight for layer in layers}
    readers = _readers_of(rules, channels, handed, weights, joined)
    return _numbered(layers, joined, lambda layer, channel: (layer.weight, channel), readers)


_Unit = int | tuple[str, int]
"""Set of channels, or a layer's weight and the set that it reads."""


def _readers_of(
    rules: Mapping[fx.Node, ChannelRule],
    channels: Mapping[fx.Node, list[int] | None],
    handed: Mapping[fx.Node, list[list[list[int]]]],
    weights: Mapping[fx.Node, str],
    joined: _Joined,
) -> dict[int, set[_Unit]]:
    """Return channel of a tensor -> the units, per reader, that it is there for."""
    found: dict[int, set[_Unit]] = {channel: set() for each in channels.values() for channel in each or ()}
    for node, rule in reversed(list(rules.items())):
        own = channels[node] or []
        given: Sequence[list[list[int]] | None] = handed[node] or [None] * len(rule.inputs)
        for source, outputs in zip(rule.inputs, given, strict=True):
            for index, channel in enumerate(channels[source] or ()):
                if isinstance(rule, Dense) and node in weights:
                    found[channel].add((weights[node], joined.find(channel)))
                elif outputs is not None:
                    found[channel].update(*(found[own[output]] for output in outputs[index]))
    return {channel: found[there] for channel, there in _removed_with(rules, channels, handed).items()}


def _removed_with(
    rules: Mapping[fx.Node, ChannelRule],
    channels: Mapping[fx.Node, list[int] | None],
    handed: Mapping[fx.Node, list[list[list[int]]]],
) -> dict[int, int]:
    """Return channel -> the earlier channel that it is present with: operations on one tensor remove none."""
    found: dict[int, int] = {}
    for node, rule in rules.items():
        own = channels[node] or []
        sources: list[list[int]] = [[] for _ in own]
        for source, outputs in zip(rule.inputs, handed[node], strict=False):
            for channel, readers in zip(channels[source] or (), outputs, strict=True):
                for reader in readers:
                    sources[reader].append(channel)
        for channel, before in zip(own, sources, strict=True):
            found[channel] = found[before[0]] if len(before) == 1 else channel
    return found


@dataclass(frozen=True)
class _Layer:
    """Layer of the graph, with the name of its weight in the model, and the numbers of its channels among all.

    `orientation` says how the weight lies in the model; it is None if that is unknown, or the weight is not trained.
    """

    node: fx.Node
    rule: ChannelRule
    weight: str
    orientation: Orientation | None
    source: list[int] | None
    output: list[int] | None
    macs: int

    @property
    def is_dense(self) -> bool:
        """True if every output channel may read every input channel."""
        return isinstance(self.rule, Dense)

    @property
    def count(self) -> int:
        """Number of its weights."""
        weight = _weight_of(self.rule)
        return 0 if weight is None else weight.numel()

    @property
    def has_inputs_first(self) -> bool:
        """True if the input channels lie on the first axis of the weight."""
        return self.orientation == "transposed" or isinstance(getattr(self.rule, "layer", None), _ConvTransposeNd)

    @property
    def reads(self) -> list[int]:
        """Channels that it mixes."""
        return (self.source or []) if self.is_dense else []


Orientation = Literal["plain", "transposed"]
"""How a weight of the graph lies in the model: as it is, or transposed, as those of GPT-2."""


def _orientation(model: nn.Module, name: str, rule: ChannelRule) -> Orientation | None:
    """Return how a weight lies in the model, None if that cannot be told."""
    own, weight = model.get_parameter(name), _weight_of(rule)
    if weight is None:
        return None
    owner = model.get_submodule(name.rpartition(".")[0])
    if own.ndim != 2 or torch_class(owner) is nn.Linear:
        return "plain" if _same(own, weight) else None
    if is_transposed_linear(owner):
        return "transposed" if _same(own.t(), weight) else None
    plain, transposed = _same(own, weight), _same(own.t(), weight)  # both of a symmetric matrix, such as zeros
    return None if plain == transposed else "plain" if plain else "transposed"


def _weight_of(rule: ChannelRule) -> Tensor | None:
    weight = getattr(getattr(rule, "layer", None), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other.to(one))


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
) -> tuple[list[int] | None, list[list[list[int]]]]:
    """Return the channels of a node's output, joined with those that it hands on, and what it hands on.

    That is, for every input, for each of its channels, the output channels that need it; empty where nothing is.
    """
    count = rule.layout.channels
    layouts = [rules[source].layout for source in rule.inputs]
    own = None if count is None else joined.new(count)
    if isinstance(rule, (Dense, Embedding, OwnTensor)):
        return own, []
    if own is None or not rule.passes_on:
        joined.fix(own or ())
        needs = rule.needs(None if count is None else Need.all(count), *layouts)
        for channels, need in zip(inputs, needs, strict=True):
            if channels is not None and need is not None:
                joined.fix([channels[i] for i in need.carried.nonzero().flatten().tolist()])
        return own, []
    handed = _readers(rule, layouts, len(own))
    for channels, outputs in zip(inputs, handed, strict=True):
        for channel, readers in zip(channels or (), outputs, strict=True):
            if 1 < len(readers) == len(own):
                joined.fix([channel])  # one for all, such as a map of weights of positions
            else:
                for reader in readers:
                    joined.join(channel, own[reader])
    return own, handed


def _readers(rule: ChannelRule, layouts: Sequence[Any], count: int) -> list[list[list[int]]]:
    """Return for every input, for each of its channels, the output channels that need it.

    The rule is called for both values of each binary digit of the outputs' numbers; the digits identify the output of
    a channel that only one output needs.
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


def _numbered(
    layers: Sequence[_Layer],
    joined: _Joined,
    unit_of: Callable[[_Layer, int], _Unit],
    readers: Mapping[int, set[_Unit]] | None,
) -> Units:
    """Return the units: sets of channels that a layer reads, without those that cannot be removed.

    Args:
        layers: the layers.
        joined: the sets.
        unit_of: layer and set -> the unit that the layer reads.
        readers: channel of a tensor -> units that it is computed for; None: the unit is its set.
    """
    fixed = joined.fixed()
    read = dict.fromkeys(
        unit_of(layer, channel) for layer in layers for channel in map(joined.find, layer.reads) if channel not in fixed
    )
    numbers = {unit: number for number, unit in enumerate(read)}

    def kept_for(channels: Sequence[int]) -> Tensor:
        rows = []
        for channel in channels:
            units = {joined.find(channel)} if readers is None else readers[channel]
            known = sorted(numbers[unit] for unit in units if unit in numbers)
            rows.append([FIXED] if joined.find(channel) in fixed or (readers is None and not known) else known)
        width = max(map(len, rows), default=0)
        return torch.tensor([row + [NEVER] * (width - len(row)) for row in rows], dtype=torch.int64).view(
            len(rows), width
        )

    found = []
    for layer in layers:
        reads = [numbers.get(unit_of(layer, joined.find(channel)), FIXED) for channel in layer.reads]
        dense = layer.rule if isinstance(layer.rule, Dense) else None
        found.append(
            LayerUnits(
                weight=layer.weight if any(unit != FIXED for unit in reads) else "",
                transposed=layer.has_inputs_first,
                reads=torch.tensor(reads, dtype=torch.int64),
                present=kept_for(layer.reads),
                makes=kept_for(layer.output or ()),
                macs=layer.macs,
                weights=layer.count,
                selection=(0.0, 1) if dense is None else dense.selection(),
            )
        )
    return Units(len(numbers), tuple(found))
