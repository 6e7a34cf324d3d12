"""Operations that move, split, merge or add axes: channels become units of several channels, such as attention heads.

An axis of H*D channels that is viewed as (H, D) has H units of D channels each. They are the channels of all that
follows, up to the view that merges the axes again: H channels of D entries, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.operations import argument, operand, operation, shape_argument
from sparsemtl.compaction.graph.sizes import (
    SPLITS,
    Group,
    axes_order,
    fixed_group,
    index_of_axes,
    number_of,
    part_shapes,
    shape_of,
)
from sparsemtl.compaction.rules.channelwise import Channelwise, preserved, zeros
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Maker, Site, kept

_PARTS = (2, 3)
"""Lengths of an axis in front of the heads that stands for queries, keys and values."""


class Regrouping(ChannelRule):
    """Rule of a view in which several channels become one, or one channel more entries.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        units: (channels of the input,), channel of the output that each belongs to.
        write: called with the number of channels that are left.

    Attributes:
        left: number of channels of the output, after `rewrite` of those that are left.
    """

    passes_on = True

    def __init__(
        self, node: fx.Node, source: fx.Node, layout: Layout, units: Tensor, write: Callable[[int], None]
    ) -> None:
        super().__init__(node, [source], layout)
        self.units = units
        self.write = write
        assert layout.channels is not None
        self.channels = self.left = layout.channels
        self.axis_read = -1

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return the units all of whose channels have one and the same constant value."""
        read = inputs[0]
        if read is None:
            return Constants.none(self.channels)
        least = torch.full((self.channels,), math.inf, dtype=torch.float64)
        least = least.scatter_reduce(0, self.units, read.value, "amin")
        most = torch.full((self.channels,), -math.inf, dtype=torch.float64)
        most = most.scatter_reduce(0, self.units, read.value, "amax")
        return Constants(self._all(read.known) & (least == most), least)

    def _all(self, channels: Tensor) -> Tensor:
        """Return the units all of whose channels are among these."""
        missing = torch.zeros(self.channels, dtype=torch.bool)
        missing[self.units[~channels]] = True
        return ~missing

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return all channels of the units that are needed."""
        assert out is not None
        self.axis_read = inputs[0].axis
        return [Need(out.live[self.units], out.carried[self.units])]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Keep whole units, and write their number into the shape."""
        assert out is not None
        mask = kept(present[0], len(self.units))
        left = self._all(mask)
        if not torch.equal(left[self.units], mask):
            left = out.carried
            spread = self._entries()
            entries = left[self.units][mask].repeat_interleave(spread)
            source = self.inputs[0]
            self.node.replace_input_with(source, editor.select(source, entries, self.axis_read, editor.device()))
        self.left = int(left.sum())
        if self.left < self.channels:
            self.write(self.left)
        return left

    def _entries(self) -> int:
        shape = shape_of(self.inputs[0])
        assert shape is not None
        return shape[self.axis_read] // len(self.units)


def located(source: fx.Node, layout: Layout) -> Layout:
    """Return a layout with the rank that a tensor has on the example."""
    shape = shape_of(source)
    if layout.rank is not None or shape is None or layout.channels is None:
        return layout
    return replace(layout, rank=len(shape), axis=layout.axis % len(shape))


def view(site: Site) -> ChannelRule | None:
    """Return the rule of a view that splits the axis of the channels, merges it with those behind it, or keeps it."""
    source = operand(site.node)
    before, after = (None if source is None else shape_of(source)), shape_of(site.node)
    if source is None or before is None or after is None:
        return None
    layout, entries = located(source, site.layouts[source]), list(shape_argument(site.node))
    if layout.channels is None or layout.spread is None:
        return None
    own = fixed_group(site.node, site.network, lambda group: layout.axis in group[0], but=layout.axis)
    if own is None:
        return None
    found = _units(layout, before, after, own, _taken_axis(site.node, len(after)))
    return None if found is None else _regrouping(site, source, found, entries)


def _units(
    layout: Layout, before: Sequence[int], after: Sequence[int], own: Group, taken: int | None
) -> tuple[Layout, Tensor] | None:
    """Return the layout of a view and the channel of it that each channel of the input belongs to."""
    ins, outs = own
    assert layout.channels is not None
    assert layout.spread is not None
    channels, leading = layout.channels, math.prod(before[i] for i in ins if i < layout.axis)
    behind = math.prod(before[i] for i in ins if i > layout.axis)
    longer = [axis for axis in outs if after[axis] > 1]
    if leading != 1 or not longer:
        return None
    if len(longer) == 1:  # kept or merged
        spread = layout.spread * behind
        return replace(layout, rank=len(after), axis=longer[0], spread=spread), torch.arange(channels)
    axis = _heads_axis(longer, after, taken)
    place = torch.arange(math.prod(after[i] for i in outs)) // math.prod(after[i] for i in outs if i > axis)
    units = (place % after[axis]).view(channels, -1)
    if bool((units != units[:, :1]).any()):
        return None
    return Layout(len(after), after[axis], axis), units[:, 0]


def _heads_axis(axes: list[int], after: Sequence[int], taken: int | None) -> int:
    """Return the first axis, or the one behind it where the first stands for queries, keys and values.

    Args:
        axes: axes of the channels that are longer than one.
        after: the shape.
        taken: axis that later nodes take apart, None if it is unknown.
    """
    likely = after[axes[0]] in _PARTS and after[axes[1]] not in _PARTS
    parts = likely if taken is None else taken == axes[0]
    return axes[1] if len(axes) > 2 and parts else axes[0]


def _taken_axis(node: fx.Node, rank: int) -> int | None:
    """Return the axis of a tensor that its readers unbind or index by numbers, None if they do not agree on one."""
    found = set()
    for user in node.users:
        order = axes_order(user, rank)
        if order is not None:
            axis = _taken_axis(user, rank)
            found.add(None if axis is None else order[axis])
        elif operation(user) in ("unbind", "select"):
            along = argument(user, 1, "dim", 0)
            found.add(along % rank if isinstance(along, int) else None)
        else:
            index = index_of_axes(user.args[1], rank) if operation(user) == "getitem" else None
            numbers = [axis for axis, (made, _) in enumerate(index or ()) if made is None]
            found.add(numbers[0] if len(numbers) == 1 else None)
    return found.pop() if len(found) == 1 else None


def _regrouping(site: Site, source: fx.Node, found: tuple[Layout, Tensor], entries: list[Any]) -> ChannelRule:
    layout, units = found
    node, spread = site.node, layout.spread or 1

    def write(left: int) -> None:
        if entries[layout.axis] != -1:
            entries[layout.axis] = left * spread
        node.args, node.kwargs = (operand(node), tuple(entries)), {}

    return Regrouping(node, source, layout, units, write)


def moved(site: Site) -> ChannelRule | None:
    """Return the rule of a transposition."""
    source = operand(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layout.channels is None or layout.rank is None:
        return None
    order = axes_order(site.node, layout.rank)
    if order is None:
        return None
    return Channelwise(site.node, [source], replace(layout, axis=order.index(layout.axis)), preserved)


def cast(site: Site) -> ChannelRule | None:
    """Return the rule of a change of type or device; only zero stays what it is in every type."""
    source = operand(site.node)
    others = [each for each in site.node.all_input_nodes if each is not source and shape_of(each) is not None]
    if source is None or site.layouts[source].channels is None or others:
        return None
    given = [*site.node.args, *site.node.kwargs.values()]
    same = operation(site.node) in ("to", "type", "type_as") and not any(isinstance(x, torch.dtype) for x in given)
    return Channelwise(site.node, [source], site.layouts[source], preserved if same else zeros)


def expansion(site: Site) -> ChannelRule | None:
    """Return the rule of an expansion along other axes than the channels'."""
    source, entries = operand(site.node), list(shape_argument(site.node))
    before, after = (None if source is None else shape_of(source)), shape_of(site.node)
    if source is None or before is None or after is None or site.layouts[source].rank != len(before):
        return None
    layout, more = site.layouts[source], len(after) - len(before)
    axis = layout.axis + more
    if layout.channels is None or len(entries) != len(after) or before[layout.axis] != after[axis]:
        return None
    node = site.node

    def write(_: fx.Node, __: Tensor) -> None:
        entries[axis] = -1
        node.args, node.kwargs = (operand(node), *entries), {}

    return Channelwise(node, [source], replace(layout, rank=len(after), axis=axis), preserved, on_removal=write)


def repeated(site: Site) -> ChannelRule | None:
    """Return the rule of `x.repeat_interleave(times, dim)` along the channels."""
    source, times, axis = (
        operand(site.node),
        argument(site.node, 1, "repeats", None),
        argument(site.node, 2, "dim", None),
    )
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or not isinstance(times, int) or not isinstance(axis, int) or layout.rank is None:
        return None
    if layout.channels is None or layout.spread is None:
        return None
    spread = layout.spread * (times if axis % layout.rank == layout.axis else 1)
    return Channelwise(site.node, [source], replace(layout, spread=spread), preserved)


def added(site: Site) -> ChannelRule | None:
    """Return the rule of one more axis of length one."""
    source, place = operand(site.node), argument(site.node, 1, "dim", None)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or not isinstance(place, int) or layout.rank is None or layout.channels is None:
        return None
    before = place % (layout.rank + 1) <= layout.axis
    found = replace(layout, rank=layout.rank + 1, axis=layout.axis + before)
    return Channelwise(site.node, [source], found, preserved)


def flipped(site: Site) -> ChannelRule | None:
    """Return the rule of `x.flip(dims)` along other axes than the channels'."""
    source = operand(site.node)
    given: Any = argument(site.node, 1, "dims", ()) if len(site.node.args) < 3 else site.node.args[1:]
    axes = (given,) if isinstance(given, int) else given
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layout.channels is None or layout.rank is None:
        return None
    if not all(isinstance(axis, int) and axis % layout.rank != layout.axis for axis in axes):
        return None
    return Channelwise(site.node, [source], layout, preserved)


class _Part(ChannelRule):
    """Rule of some channels, side by side, of a tensor or of a list of tensors that it was split into.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        first: number of its first channel.
        write: called with the numbers of channels that are left before it, and in it.
    """

    passes_on = True

    def __init__(
        self,
        node: fx.Node,
        source: fx.Node,
        layout: Layout,
        first: int,
        write: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(node, [source], layout)
        assert layout.channels is not None
        self.place = slice(first, first + layout.channels)
        self.write = write

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the constants of these channels."""
        (read,) = inputs
        return None if read is None else Constants(read.known[self.place], read.value[self.place])

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the need of these channels."""
        assert out is not None
        assert inputs[0].channels is not None
        live, carried = (torch.zeros(inputs[0].channels, dtype=torch.bool) for _ in range(2))
        live[self.place], carried[self.place] = out.live, out.carried
        return [Need(live, carried)]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Return the channels that the input still has."""
        (read,) = present
        if read is None:
            return None
        left = read[self.place]
        if self.write is not None:
            self.write(int(read[: self.place.start].sum()), int(left.sum()))
        return left


def division(site: Site) -> ChannelRule | None:
    """Return the rule of a tensor that is split into several along an axis."""
    source, axis, shapes = operand(site.node), argument(site.node, 2, "dim", 0), part_shapes(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    shape = None if source is None else shape_of(source)
    if source is None or shape is None or not isinstance(axis, int) or shapes is None:
        return None
    layout = located(source, layout)
    if layout.channels is None or layout.rank is None or layout.spread is None:
        return None
    if axis % layout.rank != layout.axis:
        return Channelwise(site.node, [source], layout, preserved)
    spread: int = layout.spread
    node = site.node
    widths: list[int] = [each[layout.axis] for each in shapes]
    if any(width % spread for width in widths):
        return None

    def write(_: fx.Node, left: Tensor) -> None:
        sizes = [int(part.sum()) * spread for part in left.split([width // spread for width in widths])]
        node.op, node.target = "call_function", torch.split
        node.args, node.kwargs = (operand(node), sizes, axis), {}

    return Channelwise(node, [source], layout, preserved, on_removal=write)


def unbound(site: Site) -> ChannelRule | None:
    """Return the rule of `x.unbind(dim)` along another axis than the channels'."""
    source, axis = operand(site.node), argument(site.node, 1, "dim", 0)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layout.channels is None or layout.rank is None or not isinstance(axis, int):
        return None
    axis %= layout.rank
    if axis == layout.axis:
        return None
    found = replace(layout, rank=layout.rank - 1, axis=layout.axis - (axis < layout.axis))
    return Channelwise(site.node, [source], found, preserved)


def selected(site: Site) -> ChannelRule | None:
    """Return the rule of `x.select(dim, index)` along another axis than the channels'."""
    return unbound(site)


def narrowed(site: Site) -> ChannelRule | None:
    """Return the rule of `x.narrow(dim, start, length)`."""
    node, source = site.node, operand(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    names = ("dim", "start", "length")
    axis, start, length = (argument(node, place, name, None) for place, name in enumerate(names, 1))
    if source is None or layout.channels is None or layout.rank is None or not isinstance(axis, int):
        return None
    if axis % layout.rank != layout.axis:
        return Channelwise(node, [source], layout, preserved)
    if not layout.spread or not isinstance(start, int) or not isinstance(length, int):
        return None
    start %= layout.channels * layout.spread
    if length < 1 or start % layout.spread or length % layout.spread:
        return None
    spread, made = layout.spread, replace(layout, channels=length // layout.spread)

    def write(left_before: int, left: int) -> None:
        node.args, node.kwargs = (node.args[0], axis, left_before * spread, left * spread), {}

    return _Part(node, source, made, start // spread, write)


def indexed(site: Site) -> ChannelRule | None:
    """Return the rule of one tensor of a list, or of an index that takes all channels."""
    source, index = operand(site.node), argument(site.node, 1, "index", None)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layout.channels is None or layout.rank is None:
        return None
    if operation(source) in (*SPLITS, "unbind"):
        return _of_list(site, source, index)
    found, shape = index_of_axes(index, layout.rank), shape_of(site.node)
    if found is None or shape is None:
        return None
    axis, part = found[layout.axis]
    if axis is None or part != slice(None):
        return _sliced(site, source, layout, index)
    return Channelwise(site.node, [source], replace(layout, rank=len(shape), axis=axis), preserved)


def _of_list(site: Site, source: fx.Node, index: object) -> ChannelRule | None:
    layout, shapes = site.layouts[source], part_shapes(source)
    if not isinstance(index, int) or shapes is None or layout.channels is None or not layout.spread:
        return None
    if operation(source) == "unbind":
        return Channelwise(site.node, [source], layout, preserved)
    assert layout.rank is not None
    if argument(source, 2, "dim", 0) % layout.rank != layout.axis:
        return Channelwise(site.node, [source], layout, preserved)
    widths = [shape[layout.axis] // layout.spread for shape in shapes]
    index %= len(widths)
    return _Part(site.node, source, replace(layout, channels=widths[index]), sum(widths[:index]))


def _sliced(site: Site, source: fx.Node, layout: Layout, index: Any) -> ChannelRule | None:
    """Return the rule of an index that takes some channels, side by side, and makes no new axes."""
    before, after = shape_of(source), shape_of(site.node)
    found = None if before is None else index_of_axes(index, len(before))
    parts = index if isinstance(index, tuple) else (index,)
    if found is None or before is None or after is None or any(each is None for each in parts) or not layout.spread:
        return None
    axis, part = found[layout.axis]
    if axis is None or part.step not in (None, 1):
        return None
    bounds = [None if each is None else number_of(each, site.network) for each in (part.start, part.stop)]
    if not all(each is None or isinstance(each, int) for each in bounds):
        return None
    start, stop, _ = slice(*bounds).indices(before[layout.axis])
    if stop <= start or start % layout.spread or stop % layout.spread:
        return None
    first, channels = start // layout.spread, (stop - start) // layout.spread
    made = replace(layout, rank=len(after), axis=axis, channels=channels)
    node, axis_read, spread = site.node, layout.axis, layout.spread

    def write(left_before: int, left: int) -> None:
        index: list[Any] = [each for _, each in index_of_axes(node.args[1], len(before)) or ()]
        index[axis_read] = slice(left_before * spread, (left_before + left) * spread)
        node.args = (node.args[0], tuple(index))

    return _Part(node, source, made, first, write)


OPERATIONS: dict[str, Maker] = {
    **dict.fromkeys(("view", "reshape"), view),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t"), moved),
    **dict.fromkeys(("to", "type", "type_as", "float", "double", "half", "bfloat16"), cast),
    **dict.fromkeys(SPLITS, division),
    "flip": flipped,
    "unbind": unbound,
    "expand": expansion,
    "getitem": indexed,
    "narrow": narrowed,
    "repeat_interleave": repeated,
    "select": selected,
    "unsqueeze": added,
}
"""Operation of torch -> rule."""
