"""Questions about a tensor that are no tensors: its shape, its type, where it lies."""

from __future__ import annotations

import operator

from torch import fx

from sparsemtl.compaction.calls import argument, operand
from sparsemtl.compaction.channels import Layout, Need
from sparsemtl.compaction.rules.rule import ChannelRule, Site

HARMLESS = ("device", "dim", "dtype", "ndim")
"""Questions whose answer has nothing to do with channels."""


class Asks(ChannelRule):
    """A question whose answer does not tell how many channels there are: it needs none."""

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Nothing."""
        return [None if layout.channels is None else Need.nothing(layout.channels) for layout in inputs]


def attribute(site: Site) -> ChannelRule | None:
    """`x.shape`, `x.dtype` and their like."""
    source, name = operand(site.node), site.node.args[1]
    if source is None:
        return None
    harmless = name in HARMLESS or (name == "shape" and _other_axes_only(site.node, site.layouts[source]))
    return Asks(site.node, [source]) if harmless else None


def size(site: Site) -> ChannelRule | None:
    """`x.size()` and `x.size(axis)`."""
    source, axis = operand(site.node), argument(site.node, 1, "dim", None)
    if source is None:
        return None
    layout = site.layouts[source]
    harmless = _other_axes_only(site.node, layout) if axis is None else _is_other(axis, layout)
    return Asks(site.node, [source]) if harmless else None


def dimensions(site: Site) -> ChannelRule | None:
    """`x.dim()`."""
    source = operand(site.node)
    return None if source is None else Asks(site.node, [source])


def _other_axes_only(shape: fx.Node, layout: Layout) -> bool:
    """Whether of a shape only axes other than the channels' are read."""
    return all(
        user.op == "call_function" and user.target is operator.getitem and _is_other(user.args[1], layout)
        for user in shape.users
    )


def _is_other(index: object, layout: Layout) -> bool:
    if layout.rank is None or not isinstance(index, int | slice):
        return False
    axes = range(layout.rank)[index]
    return layout.axis not in (axes if isinstance(axes, range) else (axes,))
