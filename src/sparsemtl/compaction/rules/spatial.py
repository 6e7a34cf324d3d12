"""Operations over the positions of every channel: pooling, resizing, padding, means, flattening."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import fx, nn

from sparsemtl.backbones.segnet import unpooled
from sparsemtl.compaction.graph.channels import Layout
from sparsemtl.compaction.graph.operations import argument, operand, operation, torch_class
from sparsemtl.compaction.rules.channelwise import Channelwise, Passing, alike, lost, preserved, zeros
from sparsemtl.compaction.rules.rule import ChannelRule, Maker, Site, UnknownRule
from sparsemtl.heads.linear import pooled

_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_PRESERVING = (
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


_PADS = {
    nn.ConstantPad1d: 1,
    nn.ConstantPad2d: 2,
    nn.ConstantPad3d: 3,
    nn.ZeroPad1d: 1,
    nn.ZeroPad2d: 2,
    nn.ZeroPad3d: 3,
}
"""Class -> axes that it pads."""


def spatial(passing: Passing, *, least: int = 3) -> Maker:
    """Return the maker of an operation on the axes behind the channels, whose number does not change.

    Args:
        passing: what becomes of constants.
        least: axes that a batch must have for the channels to be on axis 1.
    """

    def make(site: Site) -> ChannelRule | None:
        source = operand(site.node)
        layout = site.layouts.get(source, Layout()) if source is not None else Layout()
        return alike(site, passing) if is_map(layout, least) else None

    return make


def is_map(layout: Layout, least: int = 3) -> bool:
    """Return whether a tensor has channels on axis 1, one entry each, and positions behind them."""
    return layout.rank is not None and layout.rank >= least and layout.axis == 1 and layout.whole


def _max_pooling(site: Site) -> ChannelRule | None:
    """Return the rule of a function that returns maxima without their positions."""
    position = 2 if operation(site.node).startswith("adaptive") else 6
    return None if argument(site.node, position, "return_indices", False) else spatial(preserved)(site)


def _average_pooling(site: Site) -> ChannelRule | None:
    """Return the rule of average pooling: with padding, which counts as zeros, only zero stays constant."""
    layer: Any = site.module
    padding = argument(site.node, 3, "padding", 0) if layer is None else layer.padding
    divisor = argument(site.node, 6, "divisor_override", None) if layer is None else vars(layer).get("divisor_override")
    padded = padding not in (0, (0,), (0, 0), (0, 0, 0), [0], [0, 0], [0, 0, 0]) or divisor is not None
    return spatial(zeros if padded else preserved)(site)


def _unpooling(site: Site) -> ChannelRule | None:
    """Return the rule of unpooling: values at the positions of the indices, zeros elsewhere."""
    args = site.node.args[:2]
    inputs = [arg for arg in args if isinstance(arg, fx.Node)]
    layouts = {site.layouts[node] for node in inputs}
    if len(inputs) != 2 or len(layouts) != 1 or not is_map(next(iter(layouts))):
        return None
    return Channelwise(site.node, inputs, site.layouts[inputs[0]], zeros)


def item(site: Site) -> ChannelRule | None:
    """Return the rule of one output of a max pooling that returns positions too: both have its channels."""
    source, index = operand(site.node), argument(site.node, 1, "index", None)
    module = site.network.module(source) if source is not None else None
    if source is None or torch_class(module) not in MAXIMA or not getattr(module, "return_indices", False):
        return None
    return alike(site, lost if index == 1 else preserved) if index in (0, 1) and site.layouts[source].whole else None


def mean(site: Site) -> ChannelRule | None:
    """Return the rule of a mean, maximum or minimum over positions."""
    return _reduction(site, preserved)


def total(site: Site) -> ChannelRule | None:
    """Return the rule of a sum over positions."""
    return _reduction(site, zeros)


def _reduction(site: Site, passing: Passing) -> ChannelRule | None:
    source = operand(site.node)
    layout = site.layouts[source] if source is not None else Layout()
    given = argument(site.node, 1, "dim", None)
    axes = (given,) if isinstance(given, int) else given
    if source is None or not layout.whole or layout.rank is None or not axes:
        return None
    if not all(isinstance(axis, int) for axis in axes):
        return None
    places = {axis % layout.rank for axis in axes}
    if layout.axis in places or 0 in places:
        return None
    if argument(site.node, 2, "keepdim", False):
        return Channelwise(site.node, [source], layout, passing)
    before = sum(axis < layout.axis for axis in places)
    found = replace(layout, rank=layout.rank - len(places), axis=layout.axis - before)
    return Channelwise(site.node, [source], found, passing)


def _pooling_of_head(site: Site) -> ChannelRule | None:
    """Return the rule of `sparsemtl.heads.linear.pooled`: the mean over positions, if there are any."""
    (source,) = site.node.all_input_nodes
    layout = site.layouts[source]
    if layout.rank == 2:
        return Channelwise(site.node, [source], layout, preserved)
    if is_map(layout):
        return Channelwise(site.node, [source], replace(layout, rank=2), preserved)
    return UnknownRule(site.node, [source], Layout(rank=2))


def _padding_layer(site: Site) -> ChannelRule | None:
    """Return the rule of a padding layer for axes behind the channels, with one value."""
    layer: Any = site.module
    return spatial(zeros if layer.value == 0 else lost, least=2 + _PADS[torch_class(layer)])(site)


def _zero_padding(site: Site) -> ChannelRule | None:
    """Return the rule of `F.pad` for axes behind the channels, with zeros."""
    pads, mode, value = (
        argument(site.node, i + 1, name, default)
        for i, (name, default) in enumerate([("pad", ()), ("mode", "constant"), ("value", None)])
    )
    if mode != "constant" or value not in (None, 0) or not isinstance(pads, tuple | list):
        return None
    return spatial(zeros, least=2 + len(pads) // 2)(site)


LAYERS: dict[type[nn.Module], Maker] = {
    **dict.fromkeys(_PRESERVING, spatial(preserved)),
    **dict.fromkeys(_AVERAGES, _average_pooling),
    **dict.fromkeys(MAXIMA, spatial(preserved)),
    **dict.fromkeys((nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d), _unpooling),
    **dict.fromkeys((nn.LPPool1d, nn.LPPool2d, nn.LPPool3d), spatial(lost)),
    **dict.fromkeys(_PADS, _padding_layer),
}
"""Class of a layer -> rule."""

_MEANS = ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate")
_MAXIMA = tuple(f"{kind}max_pool{axes}d" for kind in ("", "adaptive_") for axes in (1, 2, 3))

FUNCTIONS: dict[Callable[..., Any], Maker] = {pooled: _pooling_of_head, unpooled: _unpooling}
"""Function of this package -> rule."""

OPERATIONS: dict[str, Maker] = {
    **dict.fromkeys(_MEANS, spatial(preserved)),
    **dict.fromkeys(_MAXIMA, _max_pooling),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pooling),
    **dict.fromkeys(("mean", "amax", "amin"), mean),
    **dict.fromkeys(("lp_pool1d", "lp_pool2d", "lp_pool3d"), spatial(lost)),
    "logsumexp": partial(_reduction, passing=lost),
    "pad": _zero_padding,
    "sum": total,
}
"""Operation of torch -> rule."""
