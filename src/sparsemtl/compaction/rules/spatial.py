"""Operations over the positions of every channel: pooling, resizing, padding, means, flattening."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparsemtl.backbones.segnet import unpooled
from sparsemtl.compaction.channels import Layout
from sparsemtl.compaction.network import argument, operand
from sparsemtl.compaction.ops import torch_class
from sparsemtl.compaction.rules.channelwise import Channelwise, Passing, alike, lost, preserved, zeros
from sparsemtl.compaction.rules.rule import Maker, Rule, Site
from sparsemtl.heads.linear import pooled

AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
PRESERVING = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.Upsample,
    nn.UpsamplingBilinear2d,
    nn.UpsamplingNearest2d,
)
"""Layers that keep a constant channel constant and give tensors with as many axes as they read."""


def spatial(passing: Passing, *, least: int = 3) -> Maker:
    """An operation on the axes behind the channels, which stay as many.

    Args:
        passing: what becomes of constants.
        least: axes that a batch must have for the channels to be on axis 1.
    """

    def make(site: Site) -> Rule | None:
        source = operand(site.node)
        layout = site.layouts.get(source, Layout()) if source is not None else Layout()
        return alike(site, passing) if _is_map(layout, least) else None

    return make


def _is_map(layout: Layout, least: int = 3) -> bool:
    return layout.rank is not None and layout.rank >= least and layout.axis == 1 and layout.whole


def average_pooling(site: Site) -> Rule | None:
    """Padding counts as zeros, so that only zero stays constant, if there is any."""
    layer: Any = site.module
    padded = layer.padding not in (0, (0,), (0, 0), (0, 0, 0)) or getattr(layer, "divisor_override", None) is not None
    return spatial(zeros if padded else preserved)(site)


def unpooling(site: Site) -> Rule | None:
    """Values are put where the indices say, zeros elsewhere."""
    args = site.node.args[:2]
    inputs = [arg for arg in args if isinstance(arg, fx.Node)]
    layouts = {site.layouts[node] for node in inputs}
    if len(inputs) != 2 or len(layouts) != 1 or not _is_map(next(iter(layouts))):
        return None
    return Channelwise(site.node, inputs, site.layouts[inputs[0]], zeros)


def item(site: Site) -> Rule | None:
    """One of the outputs of a max-pooling that gives places too: both have its channels."""
    source, index = operand(site.node), argument(site.node, 1, "index", None)
    module = site.network.module(source) if source is not None else None
    if source is None or torch_class(module) not in MAXIMA or not getattr(module, "return_indices", False):
        return None
    return alike(site, lost if index == 1 else preserved) if index in (0, 1) and site.layouts[source].whole else None


def mean(site: Site) -> Rule | None:
    """A mean, or the largest or smallest, over positions."""
    return _reduction(site, preserved)


def total(site: Site) -> Rule | None:
    """A sum over positions."""
    return _reduction(site, zeros)


def _reduction(site: Site, passing: Passing) -> Rule | None:
    source = operand(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    given = argument(site.node, 1, "dim", None)
    axes = (given,) if isinstance(given, int) else given
    if source is None or not _is_map(layout) or not axes or not all(isinstance(axis, int) for axis in axes):
        return None
    assert layout.rank is not None
    places = {axis % layout.rank for axis in axes}
    if min(places) <= layout.axis:
        return None
    rank = layout.rank if argument(site.node, 2, "keepdim", False) else layout.rank - len(places)
    return Channelwise(site.node, [source], replace(layout, rank=rank), passing)


def pooling_of_head(site: Site) -> Rule | None:
    """`sparsemtl.heads.linear.pooled`: the mean over positions, if there are any."""
    (source,) = site.node.all_input_nodes
    layout = site.layouts[source]
    if layout.rank == 2:
        return Channelwise(site.node, [source], layout, preserved)
    if _is_map(layout):
        return Channelwise(site.node, [source], replace(layout, rank=2), preserved)
    return Rule(site.node, [source], Layout(rank=2))


def flatten(site: Site) -> Rule | None:
    """Positions side by side: behind every channel's first, or on an axis of their own."""
    layer: Any = site.module
    start = argument(site.node, 1, "start_dim", 0) if layer is None else layer.start_dim
    end = argument(site.node, 2, "end_dim", -1) if layer is None else layer.end_dim
    return _flattened(site, start) if end == -1 and isinstance(start, int) and start > 0 else None


def reshape(site: Site) -> Rule | None:
    """`x.view(x.shape[0], -1)` and `x.view(x.size(0), -1)`, which flatten; no other shape is understood."""
    source, shape = operand(site.node), _shape(site.node)
    if source is None or len(shape) != 2 or shape[1] != -1 or not _is_batch(shape[0], source):
        return None
    return _flattened(site, 1)


def _shape(node: fx.Node) -> Sequence[Any]:
    """A shape that a method was given, as numbers or as one tuple."""
    given = node.args[1:]
    return given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given


def _is_batch(size: object, source: fx.Node) -> bool:
    """Whether a number in the graph is the length of a tensor's first axis."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return size.args == (source, 0)
    shape = size.args[0] if size.target is operator.getitem and size.args[1] == 0 else None
    if not isinstance(shape, fx.Node):
        return False
    return shape.args == (source, "shape") or (shape.target == "size" and shape.args == (source,))


def _flattened(site: Site, start: int) -> Rule | None:
    source = operand(site.node)
    if source is None:
        return None
    layout = site.layouts[source]
    if layout.channels is None:
        return Rule(site.node, [source], Layout(rank=start + 1))
    if layout.rank is None or layout.axis > start or (not layout.whole and layout.rank != start + 1):
        return None
    spread = None if start == layout.axis and layout.rank > start + 1 else layout.spread
    return Channelwise(site.node, [source], replace(layout, rank=start + 1, spread=spread), preserved)


def expand(site: Site) -> Rule | None:
    """`x.expand(-1, -1, height, width)`: the channels stay as many."""
    source, shape = operand(site.node), _shape(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or not _is_map(layout) or len(shape) != layout.rank or shape[layout.axis] != -1:
        return None
    return Channelwise(site.node, [source], layout, preserved)


def zero_padding(site: Site) -> Rule | None:
    """`F.pad` of axes behind the channels, with zeros."""
    pads, mode, value = (
        argument(site.node, i + 1, name, default)
        for i, (name, default) in enumerate([("pad", ()), ("mode", "constant"), ("value", None)])
    )
    if mode != "constant" or value not in (None, 0) or not isinstance(pads, tuple | list):
        return None
    return spatial(zeros, least=2 + len(pads) // 2)(site)


LAYERS: dict[type[nn.Module], Maker] = {
    **dict.fromkeys(PRESERVING, spatial(preserved)),
    **dict.fromkeys(AVERAGES, average_pooling),
    **dict.fromkeys(MAXIMA, spatial(preserved)),
    **dict.fromkeys((nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d), unpooling),
    nn.ZeroPad2d: spatial(zeros),
    nn.Flatten: flatten,
}
"""Class of a layer -> rule."""

_PRESERVING_FUNCTIONS = (
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
    F.interpolate,
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
)

FUNCTIONS: dict[Callable[..., Any], Maker] = {
    **dict.fromkeys(_PRESERVING_FUNCTIONS, spatial(preserved)),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), spatial(zeros)),
    **dict.fromkeys((torch.mean, torch.amax, torch.amin), mean),
    operator.getitem: item,
    pooled: pooling_of_head,
    unpooled: unpooling,
    torch.flatten: flatten,
    torch.sum: total,
    F.pad: zero_padding,
}
"""Function -> rule."""

METHODS: dict[str, Maker] = {
    "amax": mean,
    "amin": mean,
    "expand": expand,
    "flatten": flatten,
    "mean": mean,
    "reshape": reshape,
    "sum": total,
    "view": reshape,
}
"""Method of a tensor -> rule."""
