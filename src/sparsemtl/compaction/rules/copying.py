"""Operations that copy channels to other places: shuffles, flips, shifts, indices that are constant, repetitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.network import Network, Select
from sparsemtl.compaction.graph.operations import argument, operand, operation, shape_argument
from sparsemtl.compaction.graph.sizes import axes_order, fixed_group, index_of_axes, shape_of, write_shape
from sparsemtl.compaction.rules.axes import Regrouping
from sparsemtl.compaction.rules.channelwise import Channelwise, preserved
from sparsemtl.compaction.rules.joining import ChannelCopies
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Maker, Site, kept


def _read(site: Site) -> tuple[fx.Node | None, Layout]:
    """Return what a node reads, with its layout if its channels are one entry of a known axis each."""
    source = operand(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    return (source, layout) if layout.whole and layout.rank is not None else (None, Layout())


def _copies(site: Site, source: fx.Node, layout: Layout, copy: Callable[[Tensor], Tensor]) -> ChannelRule:
    """Return the rule of an operation that does to each line of channels what `copy` does to their numbers."""
    assert layout.channels is not None
    index = copy(torch.arange(layout.channels))
    return ChannelCopies(site.node, source, replace(layout, channels=len(index)), index, layout.channels)


def shuffle(site: Site) -> ChannelRule | None:
    """Return the rule of a channel shuffle."""
    module: Any = site.module
    source, layout = _read(site)
    groups = argument(site.node, 1, "groups", None) if module is None else module.groups
    if source is None or not isinstance(groups, int) or layout.axis != 1:
        return None
    return _copies(site, source, layout, lambda channels: channels.view(groups, -1).T.flatten())


def flip(site: Site) -> ChannelRule | None:
    """Return the rule of `x.flip(axis)` along the channels alone."""
    source, layout = _read(site)
    axes = _listed(argument(site.node, 1, "dims", ()) if len(site.node.args) < 3 else site.node.args[1:])
    if source is None or layout.rank is None or len(axes) != 1 or axes[0] % layout.rank != layout.axis:
        return None
    return _copies(site, source, layout, lambda channels: channels.flip(0))


def roll(site: Site) -> ChannelRule | None:
    """Return the rule of `torch.roll` along other axes than the channels', or along the channels alone."""
    source, layout = _read(site)
    shifts, axes = (_listed(argument(site.node, place, name, None)) for place, name in ((1, "shifts"), (2, "dims")))
    if source is None or layout.rank is None or not axes or not all(isinstance(axis, int) for axis in axes):
        return None
    places = [axis % layout.rank for axis in axes]
    if layout.axis not in places:
        return Channelwise(site.node, [source], layout, preserved)
    if len(places) > 1 or not isinstance(shifts[0], int):
        return None
    return _copies(site, source, layout, lambda channels: channels.roll(shifts[0]))


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, (tuple, list)) else (given,)


def index_select(site: Site) -> ChannelRule | None:
    """Return the rule of `x.index_select(axis, index)` with an index of the network's own; not of samples."""
    source, layout = _read(site)
    axis, index = argument(site.node, 1, "dim", None), site.network.tensor(argument(site.node, 2, "index", None))
    if source is None or layout.rank is None or not isinstance(axis, int) or index is None:
        return None
    if axis % layout.rank != layout.axis:
        return Channelwise(site.node, [source], layout, preserved) if axis % layout.rank else None
    return _copies(site, source, layout, lambda channels: channels[index.cpu()])


def strided(site: Site) -> ChannelRule | None:
    """Return the rule of an index of channels with steps, such as `x[:, ::2]`, which takes all of the other axes."""
    source, layout = _read(site)
    found = None if source is None or layout.rank is None else index_of_axes(site.node.args[1], layout.rank)
    if source is None or found is None or len(found) != len(shape_of(site.node) or ()):
        return None
    part = found[layout.axis][1]
    others = [each for axis, (_, each) in enumerate(found) if axis != layout.axis]
    bounds = [part.start, part.stop, part.step] if isinstance(part, slice) else [source]
    plain = all(each is None or isinstance(each, int) for each in bounds)
    if not plain or any(each != slice(None) for each in others):
        return None
    return _copies(site, source, layout, lambda channels: channels[part])


def repeat(site: Site) -> ChannelRule | None:
    """Return the rule of `x.repeat(1, times, ...)`, which leaves the samples as they are."""
    source, layout = _read(site)
    times = list(shape_argument(site.node) or argument(site.node, 1, "dims", ()))
    if source is None or len(times) != layout.rank or layout.axis == 0 or times[0] != 1:
        return None
    count = times[layout.axis]
    if count == 1:
        return Channelwise(site.node, [source], layout, preserved)
    alone = all(each == 1 for axis, each in enumerate(times) if axis != layout.axis)
    if not isinstance(count, int) or count < 1 or not alone:
        return None
    return _copies(site, source, layout, lambda channels: channels.repeat(count))


def pixel_shuffle(site: Site) -> ChannelRule | None:
    """Return the rule of a pixel shuffle: `factor ** 2` channels, side by side, become one."""
    source, layout, factor = _map_and_factor(site, "upscale_factor")
    if source is None or layout.channels is None:
        return None
    units = torch.arange(layout.channels) // factor**2
    made = replace(layout, channels=layout.channels // factor**2)
    return Regrouping(site.node, source, made, units, lambda _: None)


def pixel_unshuffle(site: Site) -> ChannelRule | None:
    """Return the rule of a pixel unshuffle: each channel becomes `factor ** 2`, side by side."""
    source, layout, factor = _map_and_factor(site, "downscale_factor")
    if source is None or layout.channels is None:
        return None
    return _Parts(site.node, source, replace(layout, channels=layout.channels * factor**2), factor**2)


def _map_and_factor(site: Site, name: str) -> tuple[fx.Node | None, Layout, int]:
    source, layout = _read(site)
    factor = argument(site.node, 1, name, None) if site.module is None else getattr(site.module, name)
    fits = isinstance(factor, int) and layout.rank is not None and layout.axis == layout.rank - 3
    return (source if fits else None), layout, factor


class _Parts(ChannelRule):
    """Rule of a node that cuts the positions of each channel into channels of their own, side by side.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        parts: channels of the output per channel of the input.
    """

    passes_on = True

    def __init__(self, node: fx.Node, source: fx.Node, layout: Layout, parts: int) -> None:
        super().__init__(node, [source], layout)
        self.parts = parts

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the constants of the input, once per part."""
        (read,) = inputs
        parts = self.parts
        return read and Constants(read.known.repeat_interleave(parts), read.value.repeat_interleave(parts))

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the channels any part of which is needed."""
        assert out is not None
        return [Need(*(each.view(-1, self.parts).any(1) for each in (out.live, out.carried)))]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Return all parts of the channels that the input still has."""
        assert self.layout.channels is not None
        return kept(present[0], self.layout.channels // self.parts).repeat_interleave(self.parts)


def close_shuffles(network: Network, rules: Mapping[fx.Node, ChannelRule]) -> bool:
    """Replace channel shuffles that are written as views and a transposition by one selection of channels.

    Returns:
        True if there was one.
    """
    found = False
    for node in list(network.graph.nodes):
        split = _split_of(node, network)
        source = None if split is None else operand(split)
        layout = rules[source].layout if source is not None and source in rules else Layout()
        if split is None or source is None or not layout.whole or layout.axis != 1 or layout.channels is None:
            continue
        groups, width = (shape_of(split) or ())[1:3]
        if groups * width != layout.channels or not fixed_group(split, network, lambda group: 1 in group[0], but=1):
            continue
        index = torch.arange(layout.channels).view(groups, width).T.flatten()
        editor = Editor(network)
        editor.become(node, source, Select(index.to(editor.device()), 1))
        write_shape(node, shape_of(source), 1, layout.channels)
        found = True
    return found


def _split_of(node: fx.Node, network: Network) -> fx.Node | None:
    """Return the view that splits the channels, where a node merges two axes that were exchanged in between."""
    merged, moved = shape_of(node), operand(node)
    while moved is not None and operation(moved) == "contiguous":
        moved = operand(moved)
    split = None if moved is None else operand(moved)
    if merged is None or moved is None or split is None or operation(split) not in ("view", "reshape"):
        return None
    rank = len(merged) + 1
    exchanged = [0, 2, 1, *range(3, rank)]
    before, after = (shape_of(operand(split) or split), shape_of(moved))
    if axes_order(moved, rank) != exchanged or before != merged or after is None:
        return None
    if operation(node) == "flatten":
        both = (argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)) == (1, 2)
    else:
        both = operation(node) in ("view", "reshape") and _merges(node, network)
    return split if both and after[1] * after[2] == merged[1] else None


def _merges(node: fx.Node, network: Network) -> bool:
    """Return whether a view merges the second and the third axis, for inputs of any size."""
    return fixed_group(node, network, lambda group: group[1] == [1]) == ([1, 2], [1])


OPERATIONS: dict[str, Maker] = {
    "channel_shuffle": shuffle,
    "flip": flip,
    "getitem": strided,
    "index_select": index_select,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("repeat", "tile"), repeat),
    "roll": roll,
}
"""Operation of torch -> rule."""
