"""What a node does with channels: the contract that the passes rely on, and what is true of unknown operations."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.channels import Constants, Layout, Need
from sparsemtl.compaction.network import Network
from sparsemtl.compaction.select import Select


class Rule:
    """How channels pass through one node. This one knows nothing: every channel is needed and none is cut.

    Args:
        node: the node.
        inputs: the tensors with channels that it reads, in order.
        layout: of its output.
    """

    passes_on: ClassVar[bool] = False
    """Whether channels of the output are channels of the inputs."""

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], layout: Layout | None = None) -> None:
        self.node = node
        self.inputs = tuple(inputs)
        self.layout = layout or Layout()

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Which channels of the output are constant, None if none is; may move constants into own weights.

        Args:
            inputs: those of the inputs; None for an input without any.
        """
        return None

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """What is needed of every input.

        Args:
            out: what is needed of the output, None if it has no known channels.
            inputs: layouts of the inputs.
        """
        return [everything(layout) for layout in inputs]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Cut what is not needed.

        Args:
            out: what is needed of the output.
            present: which channels each input still has, (channels,), bool; None for all.
            editor: what changes the graph.

        Returns:
            which channels the output still has; None for all.
        """
        return None


def everything(layout: Layout) -> Need | None:
    """All channels of a tensor, None if it has no known ones."""
    return None if layout.channels is None else Need.all(layout.channels)


def kept(present: Tensor | None, channels: int) -> Tensor:
    """Which channels are still there, written out."""
    return torch.ones(channels, dtype=torch.bool) if present is None else present


@dataclass
class Editor:
    """Puts selections of channels into a graph, each once.

    Attributes:
        network: the network.
        made: (node, entries) -> the selection that there is already.
        wider: nodes that will give fewer channels than later nodes expect -> what brings them back.
    """

    network: Network
    made: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = field(default_factory=dict)
    wider: dict[fx.Node, Select] = field(default_factory=dict)

    def select(self, source: fx.Node, entries: Tensor, axis: int, device: torch.device) -> fx.Node:
        """A node with some entries of another's axis.

        Args:
            source: the other node.
            entries: which to take of those that are there, bool.
            axis: the axis.
            device: where the network computes.
        """
        index = entries.nonzero().flatten()
        key = (source, tuple(index.tolist()))
        if key not in self.made:
            self.made[key] = self._add(source, Select(index.to(device), axis))
        return self.made[key]

    def finish(self) -> None:
        """Put constants between the channels of nodes that give fewer of them."""
        for source, layer in self.wider.items():
            placed = self._add(source, layer)
            source.replace_all_uses_with(placed, delete_user_cb=partial(operator.is_not, placed))

    def _add(self, source: fx.Node, layer: Select) -> fx.Node:
        name = next(name for i in count() if (name := f"{source.name}_select_{i}") not in self.network.modules)
        self.network.modules[name] = layer.eval()
        with self.network.graph.inserting_after(source):
            return self.network.graph.call_module(name, (source,))

    def device(self) -> torch.device:
        """Where the network's first weight is."""
        tensors = (p for module in self.network.modules.values() for p in module.parameters())
        return next((p.device for p in tensors), torch.device("cpu"))


@dataclass(frozen=True)
class Site:
    """A node that a rule is sought for, and what is known so far.

    Attributes:
        node: the node.
        network: its network.
        layouts: of all nodes before.
        free: the modules that may be changed.
    """

    node: fx.Node
    network: Network
    layouts: Mapping[fx.Node, Layout]
    free: set[nn.Module]

    @property
    def module(self) -> nn.Module | None:
        """The module that the node calls."""
        return self.network.module(self.node)


Maker = Callable[[Site], Rule | None]
"""Makes the rule for a node, None if it is not a case that the rule is right for."""
