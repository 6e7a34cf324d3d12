"""Contract of the rules that the passes rely on, and the rule of unknown operations."""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.network import Constant, Network, Select
from sparsemtl.compaction.graph.sizes import shape_of, size_of, write_shape


class ChannelRule(abc.ABC):
    """Rule of one node: constant channels, needed channels, and removal of the others.

    Args:
        node: the node.
        inputs: tensors with channels that the node reads, in order.
        layout: layout of its output.
    """

    passes_on: ClassVar[bool] = False
    """True if channels of the output are channels of the inputs."""

    binds: ClassVar[bool] = False
    """True if a channel of the input may have to stay because others do."""

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], layout: Layout | None = None) -> None:
        self.node = node
        self.inputs = tuple(inputs)
        self.layout = layout or Layout()

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the constant channels of the output, None if there is none; may fold constants into own weights.

        Args:
            inputs: constant channels of the inputs; None for an input without any.
        """
        return None

    @abc.abstractmethod
    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the channels that the node needs of every input.

        Args:
            out: needed channels of the output, None if it has no known channels.
            inputs: layouts of the inputs.
        """

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Remove the channels that are not needed, and return those that the output still has, None for all.

        Args:
            out: needed channels of the output.
            present: channels that each input still has, (channels,), bool; None for all.
            editor: editor of the graph.
        """
        return None


class UnknownRule(ChannelRule):
    """Rule of nodes that are not understood: every channel is needed and none is removed.

    Args:
        node, inputs, layout: see `ChannelRule`.
        why: reason for the report; "" for a general one.
    """

    def __init__(
        self, node: fx.Node, inputs: Sequence[fx.Node], layout: Layout | None = None, *, why: str = ""
    ) -> None:
        super().__init__(node, inputs, layout)
        self.why = why

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return all channels of every input."""
        return [None if layout.channels is None else Need.all(layout.channels) for layout in inputs]


def kept(present: Tensor | None, channels: int) -> Tensor:
    """Return the channels that are still there, (channels,), bool."""
    return torch.ones(channels, dtype=torch.bool) if present is None else present


def rank_of(source: fx.Node, layout: Layout) -> int | None:
    """Return the number of axes of a tensor, on the example where no layer determines it; None if it is unknown."""
    shape = shape_of(source)
    return layout.rank if layout.rank is not None or shape is None else len(shape)


def on_last_axis(rank: int | None, channels: int) -> Layout:
    """Return the layout of channels on the last axis of a tensor of some rank, None if it is unknown."""
    return Layout(rank, channels, -1 if rank is None else rank - 1)


@dataclass
class Editor:
    """Editor that inserts selections of channels into a graph, each once.

    Attributes:
        network: the network.
        multiple_of: number of which the channels of images are to be a multiple.
        made: (node, entries) -> existing selection.
        wider: nodes that will return fewer channels than later nodes expect -> layer that restores them.
        notes: name of a layer -> reasons why it keeps channels that it does not need.
    """

    network: Network
    multiple_of: int = 1
    made: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = field(default_factory=dict)
    wider: dict[fx.Node, Select] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, node: fx.Node, reason: str) -> None:
        """Record a reason why a layer keeps channels that it does not need."""
        self.notes.setdefault(str(node.target), []).append(reason)

    def select(self, source: fx.Node, entries: Tensor, axis: int, device: torch.device) -> fx.Node:
        """Return a node with some entries of another node's axis.

        Args:
            source: the other node.
            entries: entries to take, bool.
            axis: the axis.
            device: device of the network.
        """
        index = entries.nonzero().flatten()
        key = (source, tuple(index.tolist()))
        if key not in self.made:
            self.made[key] = self._add(source, Select(index.to(device), axis))
        return self.made[key]

    def become(self, node: fx.Node, source: fx.Node, layer: Select) -> None:
        """Replace what a node does by a selection of what it reads."""
        node.op, node.target = "call_module", self._own(node.name, layer)
        node.args, node.kwargs = (source,), {}

    def fix(self, node: fx.Node, bias: Tensor) -> bool:
        """Replace a linear layer by a constant at the positions of its input; return False if these are not known.

        Args:
            node: the layer, whose weights are zero.
            bias: (outputs,), the constant.
        """
        source = node.all_input_nodes[0]
        shape = shape_of(source)
        if shape is None or len(shape) < 3:  # of vectors alone, one input costs next to nothing
            return False
        places = [size_of(source, axis, self.network) for axis in range(len(shape) - 1)]
        if not all(isinstance(place, (int, tuple)) for place in places):
            return False
        layer: Any = self.network.module(node)
        with self.network.graph.inserting_before(node):
            node.args = tuple(
                place if isinstance(place, int) else self.network.graph.call_method("size", place)  # type: ignore[arg-type]
                for place in places
            )
        node.kwargs = {}
        has_bias = layer.bias is not None
        own = nn.Parameter(bias, requires_grad=layer.bias.requires_grad) if has_bias else bias
        self.network.modules[str(node.target)] = Constant(own).eval()
        return True

    def finish(self) -> None:
        """Insert constants between the channels of nodes that return fewer of them."""
        for source, layer in self.wider.items():
            placed = self._add(source, layer)
            source.replace_all_uses_with(placed, delete_user_cb=partial(operator.is_not, placed))

    def _add(self, source: fx.Node, layer: Select) -> fx.Node:
        name = self._own(source.name, layer)
        with self.network.graph.inserting_after(source):
            placed = self.network.graph.call_module(name, (source,))
        write_shape(placed, shape_of(source), layer.axis, len(layer.index))
        return placed

    def _own(self, source: str, layer: Select) -> str:
        """Add a layer to the network, and return its name."""
        name = next(name for i in count() if (name := f"{source}_select_{i}") not in self.network.modules)
        self.network.modules[name] = layer.eval()
        return name

    def device(self) -> torch.device:
        """Return the device of the network's first weight."""
        tensors = (p for module in self.network.modules.values() for p in module.parameters())
        return next((p.device for p in tensors), torch.device("cpu"))


@dataclass(frozen=True)
class Site:
    """Node for which a rule is made, and the context of the node.

    Attributes:
        node: the node.
        network: its network.
        layouts: layouts of all nodes before it.
        free: modules that may be changed.
    """

    node: fx.Node
    network: Network
    layouts: Mapping[fx.Node, Layout]
    free: set[nn.Module]

    @property
    def module(self) -> nn.Module | None:
        """Module that the node calls."""
        return self.network.module(self.node)


Maker = Callable[[Site], ChannelRule | None]
"""Makes the rule of a node, None in a case that the rule is not right for."""
