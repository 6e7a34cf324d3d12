"""Views that add axes beside the channels (flattening, axes of length one, expansion), and questions about shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.checks import check_answer
from sparsemtl.compaction.graph.channels import Layout, Need
from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import (
    CONVOLUTIONS,
    NORMS,
    argument,
    is_elementwise,
    operand,
    operation,
    shape_argument,
    torch_class,
)
from sparsemtl.compaction.graph.sizes import shape_of
from sparsemtl.compaction.rules.channelwise import Channelwise, preserved
from sparsemtl.compaction.rules.rule import ChannelRule, Maker, Site, UnknownRule
from sparsemtl.compaction.rules.spatial import is_map, item

_RESHAPES = ("reshape", "view")


def flatten(site: Site) -> ChannelRule | None:
    """Return the rule of flattening: positions go behind every channel's first one, or on an axis of their own."""
    layer: Any = site.module
    start = argument(site.node, 1, "start_dim", 0) if layer is None else layer.start_dim
    end = argument(site.node, 2, "end_dim", -1) if layer is None else layer.end_dim
    return _flattened(site, start) if end == -1 and isinstance(start, int) and start > 0 else None


def reshape(site: Site) -> ChannelRule | None:
    """Return the rule of `x.view(batch, -1)`, which flattens, and `x.view(batch, channels, ...)`; None for others."""
    source, shape = operand(site.node), shape_argument(site.node)
    if source is None or len(shape) < 2:
        return None
    layout, first = site.layouts[source], _is_batch(shape[0], source, site.layouts)
    if len(shape) == 2 and shape[1] == -1:
        return _flattened(site, 1) if first else None
    counted = isinstance(shape[1], int) and shape[1] == layout.channels
    if len(shape) > 2 and counted and first and layout.whole and layout.axis == 1:
        return _reshaped(site, source, replace(layout, rank=len(shape)))  # positions stay with their channel
    if not layout.whole or layout.rank is None or layout.axis != 1 or any(size != 1 for size in shape[2:]):
        return None
    vectors = layout.rank == 2 or _positions(source, site.network) == 1
    counted = counted or (shape[1] == -1 and layout.rank == 2 and first)
    first = first or (shape[0] == -1 and shape[1] != -1 and vectors)  # of maps, positions would become samples
    return _reshaped(site, source, replace(layout, rank=len(shape))) if counted and first else None


def _reshaped(site: Site, source: fx.Node, layout: Layout) -> ChannelRule:
    """Return the rule of a view whose shape contains the number of channels."""
    return Channelwise(site.node, [source], layout, preserved, on_removal=_write_channels)


def _write_channels(node: fx.Node, mask: Tensor) -> None:
    """Write the number of channels that are left into the shape of a view."""
    source, (batch, channels, *others) = node.args[0], shape_argument(node)
    left = channels if channels == -1 else int(mask.sum())
    node.args, node.kwargs = (source, (batch, left, *others)), {}


def write_known_sizes(network: Network, rules: Mapping[fx.Node, ChannelRule]) -> bool:
    """Write the number of channels of a tensor into shapes that read it, and remove guards about it.

    The number is known, so that no channel is needed for a question about it.

    Returns:
        True if a shape was changed: rules of nodes behind it may then find more.
    """
    changed = False
    layouts = {node: rule.layout for node, rule in rules.items()}
    for node in list(network.graph.nodes):
        source = operand(node)
        if source is not None and operation(node) in (*_RESHAPES, "expand") and source in layouts:
            given, shape = list(shape_argument(node)), _with_known_sizes(node, layouts[source], layouts)
            if shape != given:
                node.args, node.kwargs = (source, tuple(shape)), {}
                changed = True
        elif node.target is check_answer:
            asked = node.args[0]
            numbers = asked.all_input_nodes if isinstance(asked, fx.Node) else []
            if all(_counts(each, _channels_of(each, layouts), layouts) for each in numbers):
                network.graph.erase_node(node)
    return changed


def _with_known_sizes(node: fx.Node, read: Layout, layouts: Mapping[fx.Node, Layout]) -> list[Any]:
    """Return the shape of a view or an expansion, with numbers in place of sizes of channels.

    The entry of the channels of an expansion is -1: it keeps as many as are left.
    """
    given = shape_argument(node)
    shape = [_known(size, layouts) for size in given]
    place = read.axis - (read.rank or 0)  # from the end
    if operation(node) == "expand" and read.channels is not None and _counts(given[place], read.channels, layouts):
        shape[place] = -1
    return shape


def _known(size: Any, layouts: Mapping[fx.Node, Layout]) -> Any:
    """Return a number in the graph that is computed from numbers of channels as an integer, others unchanged."""
    if not isinstance(size, fx.Node):
        return size
    tensor, _ = _asked_size(size)
    if tensor is not None:
        layout = layouts.get(tensor, Layout())
        known = layout.whole and _counts(size, layout.channels, layouts)
        return layout.channels if known else size
    if size.target in (operator.add, operator.sub, operator.mul, operator.floordiv):
        numbers = [_known(each, layouts) for each in size.args]
        if all(isinstance(each, int) for each in numbers):
            return size.target(*numbers)
    return size


def _channels_of(size: fx.Node, layouts: Mapping[fx.Node, Layout]) -> int | None:
    tensor, _ = _asked_size(size)
    return layouts.get(tensor, Layout()).channels if tensor is not None else None


def _counts(size: object, channels: int | None, layouts: Mapping[fx.Node, Layout]) -> bool:
    """Return whether a number in the graph is the number of channels of a tensor, and this many."""
    if not isinstance(size, fx.Node) or channels is None:
        return False
    tensor, axis = _asked_size(size)
    layout = layouts.get(tensor, Layout()) if tensor is not None else Layout()
    at_channels = layout.rank is not None and isinstance(axis, int) and axis % layout.rank == layout.axis
    return at_channels and layout.whole and layout.channels == channels


def _asked_size(size: fx.Node) -> tuple[fx.Node | None, object]:
    """Return the tensor and the axis whose size a node is; (None, None) if it is no size."""
    if size.op == "call_method" and size.target == "size":
        return operand(size), argument(size, 1, "dim", None)
    shape = size.args[0] if size.target is operator.getitem else None
    if not isinstance(shape, fx.Node):
        return None, None
    whole = shape.op == "call_method" and shape.target == "size" and argument(shape, 1, "dim", None) is None
    if whole or (shape.target is getattr and shape.args[1] == "shape"):
        return operand(shape), size.args[1]
    return None, None


def _is_batch(size: object, source: fx.Node, layouts: Mapping[fx.Node, Layout]) -> bool:
    """Return whether a number is the length of a tensor's first axis, or of a tensor that it was computed from."""
    tensor, axis = _asked_size(size) if isinstance(size, fx.Node) else (None, None)
    if tensor is None or axis != 0:
        return False
    waiting, seen = [source], {source}
    while waiting:
        node = waiting.pop()
        if node is tensor:
            return True
        # what channels are known of keeps its samples apart; an expansion may have more of them
        if layouts.get(node, Layout()).channels is not None and operation(node) != "expand":
            new = [each for each in node.all_input_nodes if each not in seen]
            seen.update(new)
            waiting += new
    return False


def _flattened(site: Site, start: int) -> ChannelRule | None:
    source = operand(site.node)
    if source is None:
        return None
    layout = site.layouts[source]
    if layout.channels is None:
        return UnknownRule(site.node, [source], Layout(rank=start + 1))
    if layout.rank is None or layout.axis > start or (not layout.whole and layout.rank != start + 1):
        return None
    positions = start == layout.axis and layout.rank > start + 1
    spread = _positions(source, site.network) if positions else layout.spread
    return Channelwise(site.node, [source], replace(layout, rank=start + 1, spread=spread), preserved)


def _positions(node: fx.Node, network: Network) -> int | None:
    """Return the number of positions of a map if an adaptive pooling or a mean makes it the same for all inputs."""
    module, source, shape = network.module(node), operand(node), shape_of(node)
    if source is None or shape is None:
        return None
    name = operation(node)
    if is_elementwise(node, module) or torch_class(module) in (*NORMS, nn.PReLU) or name == "squeeze":
        return _positions(source, network)
    if torch_class(module) in CONVOLUTIONS and _keeps_positions(module):
        return _positions(source, network)
    adaptive = torch_class(module).__name__.startswith("Adaptive") or name.startswith("adaptive_")
    size: Any = argument(node, 1, "output_size", None) if module is None else getattr(module, "output_size", None)
    fixed = adaptive and all(isinstance(each, int) for each in (size if isinstance(size, (tuple, list)) else [size]))
    averaged = name == "mean" and set(shape[2:]) == {1} and argument(node, 2, "keepdim", False) is True
    return math.prod(shape[2:]) if fixed or averaged else None


def _keeps_positions(layer: Any) -> bool:
    """Return whether a convolution has a kernel of one position."""
    return set(layer.kernel_size) == set(layer.stride) == {1} and layer.padding in ((0,), (0, 0), (0, 0, 0), "same")


def expand(site: Site) -> ChannelRule | None:
    """Return the rule of `x.expand(-1, -1, height, width)`, which keeps the channels."""
    source, shape = operand(site.node), shape_argument(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or not is_map(layout) or len(shape) != layout.rank:
        return None
    return Channelwise(site.node, [source], layout, preserved) if shape[layout.axis] == -1 else None


def expand_as(site: Site) -> ChannelRule | None:
    """Return the rule of `x.expand_as(y)` where both have the same channels."""
    source, other = operand(site.node), argument(site.node, 1, "other", None)
    if source is None or not isinstance(other, fx.Node) or source is other:
        return None
    layout = site.layouts[source]
    fits = is_map(layout) and site.layouts[other] == layout
    return Channelwise(site.node, [source, other], layout, lambda first, _: first) if fits else None


def unsqueeze(site: Site) -> ChannelRule | None:
    """Return the rule of one more axis, behind the channels."""
    source, axis = operand(site.node), argument(site.node, 1, "dim", None)
    layout = site.layouts[source] if source is not None else Layout()
    if not isinstance(axis, int) or layout.rank is None:
        return None
    return _longer(site, 1) if axis % (layout.rank + 1) == layout.rank else None


def getitem(site: Site) -> ChannelRule | None:
    """Return the rule of `x[:, :, None, None]` and `x[..., None]`, or of one output of a layer with several."""
    source = operand(site.node)
    index = site.node.args[1] if len(site.node.args) > 1 else None
    layout = site.layouts[source] if source is not None else Layout()
    if not isinstance(index, tuple) or layout.rank is None:
        return item(site)
    behind = list(index)
    axes = 0
    while behind and (behind[0] is Ellipsis or behind[0] == slice(None)):
        axes = layout.rank if behind[0] is Ellipsis else axes + 1
        behind.pop(0)
    return _longer(site, len(behind)) if axes == layout.rank and all(each is None for each in behind) else None


def _longer(site: Site, more: int) -> ChannelRule | None:
    """Return the rule of some axes of length one at the end."""
    source = operand(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or not layout.whole or layout.rank is None or layout.axis != 1:
        return None
    return Channelwise(site.node, [source], replace(layout, rank=layout.rank + more), preserved)


def squeeze(site: Site) -> ChannelRule | None:
    """Return the rule of `x.squeeze(dim)` for axes behind the channels that have length one for all inputs."""
    source, given = operand(site.node), argument(site.node, 1, "dim", None)
    axes = (given,) if isinstance(given, int) else given
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layout.channels is None or layout.rank is None or not axes:
        return None
    if not all(isinstance(axis, int) for axis in axes):
        return None
    behind = all(axis % layout.rank > layout.axis for axis in axes)
    if not behind or _positions(source, site.network) != 1:
        return None
    return Channelwise(site.node, [source], replace(layout, rank=layout.rank - len(axes)), preserved)


OPERATIONS: dict[str, Maker] = {
    **dict.fromkeys(_RESHAPES, reshape),
    "expand": expand,
    "expand_as": expand_as,
    "flatten": flatten,
    "getitem": getitem,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
}
"""Operation of torch -> rule."""


_HARMLESS = ("device", "dim", "dtype", "ndim")
"""Questions whose answer has nothing to do with channels."""


class _Asks(ChannelRule):
    """Rule of a question whose answer does not depend on the number of channels: it needs none."""

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return a need of no channel."""
        return [None if layout.channels is None else Need.nothing(layout.channels) for layout in inputs]


def attribute(site: Site) -> ChannelRule | None:
    """Return the rule of `x.shape`, `x.dtype` and similar attributes."""
    source, name = operand(site.node), site.node.args[1]
    if source is None:
        return None
    harmless = name in _HARMLESS or (name == "shape" and _other_axes_only(site.node, site.layouts[source]))
    return _Asks(site.node, [source]) if harmless else None


def size(site: Site) -> ChannelRule | None:
    """Return the rule of `x.size()` and `x.size(axis)`."""
    source, axis = operand(site.node), argument(site.node, 1, "dim", None)
    if source is None:
        return None
    layout = site.layouts[source]
    harmless = _other_axes_only(site.node, layout) if axis is None else _is_other(axis, layout)
    return _Asks(site.node, [source]) if harmless else None


def dimensions(site: Site) -> ChannelRule | None:
    """Return the rule of `x.dim()`."""
    source = operand(site.node)
    return None if source is None else _Asks(site.node, [source])


def _other_axes_only(shape: fx.Node, layout: Layout) -> bool:
    """Return whether only sizes of axes other than the channels' are read."""
    return all(
        user.op == "call_function" and user.target is operator.getitem and _is_other(user.args[1], layout)
        for user in shape.users
    )


def _is_other(index: object, layout: Layout) -> bool:
    if layout.rank is None or not isinstance(index, int | slice):
        return False
    axes = range(layout.rank)[index]
    return layout.axis not in (axes if isinstance(axes, range) else (axes,))
