"""Parameters that an operation reads beside a tensor: scales per channel, position embeddings, tokens of attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import is_elementwise, operation
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site

_JOINING = ("cat", "expand")
"""Operations through which a parameter with one long axis has its channels on that axis."""


class OwnTensor(ChannelRule):
    """Rule of a tensor of the network's own.

    Args:
        node: see `ChannelRule`.
        layout: see `ChannelRule`.
        tensor: the tensor.
    """

    def __init__(self, node: fx.Node, layout: Layout, tensor: Tensor) -> None:
        super().__init__(node, [], layout)
        self.tensor = tensor

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return the channels with one value at all positions."""
        assert self.layout.channels is not None
        channels = self.tensor.detach().double().cpu().movedim(self.layout.axis, 0).reshape(self.layout.channels, -1)
        return Constants((channels == channels[:, :1]).all(1), channels[:, 0])

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return nothing: it reads no node."""
        return []

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Remove the channels that are not carried; those that are only carried become zero."""
        assert out is not None
        spread, axis = self.layout.spread or 1, self.layout.axis
        tensor = self.tensor.detach().clone().movedim(axis, 0)
        tensor[~out.live.repeat_interleave(spread)] = 0
        left = tensor[out.carried.repeat_interleave(spread)].movedim(0, axis).contiguous()
        trained = isinstance(self.tensor, nn.Parameter)
        made = nn.Parameter(left, requires_grad=self.tensor.requires_grad) if trained else left
        editor.network.tensors[str(self.node.target)] = made
        return out.carried


def is_read_once(node: fx.Node, network: Network) -> bool:
    """Return whether one node alone reads a tensor of floating-point numbers, and no layer owns it."""
    tensor = network.tensor(node)
    if tensor is None or not tensor.is_floating_point() or tensor.numel() < 2 or len(node.users) != 1:
        return False
    readers = sum(network.tensor(other) is tensor for other in network.graph.nodes)
    owned = (own for module in network.modules.values() for own in chain(module.parameters(), module.buffers()))
    return readers == 1 and all(tensor is not own for own in owned)


def parameter(site: Site) -> ChannelRule | None:
    """Return the rule of a tensor that one operation alone reads, whose channels are those of what it is read with."""
    tensor = site.network.tensor(site.node)
    if tensor is None or not is_read_once(site.node, site.network):
        return None
    reader = next(iter(site.node.users))
    if is_elementwise(reader, None):
        found = (_beside(tensor, site.layouts.get(other)) for other in reader.all_input_nodes if other is not site.node)
        layout = next((each for each in found if each is not None), None)
    else:
        layout = _of_one_axis(tensor) if operation(reader) in _JOINING else None
    return None if layout is None else OwnTensor(site.node, layout, tensor)


def _beside(tensor: Tensor, other: Layout | None) -> Layout | None:
    """Return the layout of a tensor with an axis of another one's channels."""
    if other is None or other.channels is None or not other.spread:
        return None
    if other.rank is None:  # the channels are on the last axis, as those of the parameter
        fits = tensor.ndim == 1 and len(tensor) == other.channels and other.whole
        return other if fits else None
    axis = tensor.ndim + other.axis - other.rank
    fits = axis >= 0 and tensor.shape[axis] == other.channels * other.spread
    return Layout(tensor.ndim, other.channels, axis, other.spread) if fits and tensor.ndim <= other.rank else None


def _of_one_axis(tensor: Tensor) -> Layout | None:
    long = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    return Layout(tensor.ndim, tensor.shape[long[0]], long[0]) if len(long) == 1 else None
