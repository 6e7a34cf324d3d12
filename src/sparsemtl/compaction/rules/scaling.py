"""Layers with numbers of their own for every channel: norms, depthwise convolutions, slopes of activations."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.channels import Constants, Layout, Need
from sparsemtl.compaction.graph.operations import CONVOLUTIONS, INSTANCE_NORMS, NORMS, operand, torch_class
from sparsemtl.compaction.rules.channelwise import Channelwise
from sparsemtl.compaction.rules.rule import ChannelRule, Editor, Site, UnknownRule


class _PerChannel(ChannelRule):
    """Rule of a layer that computes every channel from the same channel of the input, with weights per channel.

    Args:
        node: see `ChannelRule`.
        source: what it reads.
        layout: see `ChannelRule`.
        layer: the module.
    """

    passes_on = True

    def __init__(self, node: fx.Node, source: fx.Node, layout: Layout, layer: Any) -> None:
        super().__init__(node, [source], layout)
        self.layer = layer

    @property
    def channels(self) -> int:
        """Channels of input and output."""
        assert self.layout.channels is not None
        return self.layout.channels

    @abc.abstractmethod
    def reads(self) -> Tensor:
        """Return the channels of the input that change the output, (channels,), bool."""

    def needs(self, out: Need | None, *inputs: Layout) -> list[Need | None]:
        """Return the need of the output; channels that do not change the output are only carried."""
        if out is None or inputs[0].channels is None:
            return [None]
        return [Need(out.live & self.reads(), out.carried)]

    def rewrite(self, out: Need | None, present: Sequence[Tensor | None], editor: Editor) -> Tensor | None:
        """Keep the channels that the input still has."""
        (mask,) = present
        if mask is not None:
            self.keep_only(mask)
        return mask

    @abc.abstractmethod
    def keep_only(self, mask: Tensor) -> None:
        """Keep only these channels, (channels,), bool."""


class _BatchNorm(_PerChannel):
    """Rule of a batch norm in eval mode: a scale and a shift per channel."""

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the channels with a constant input or a scale of zero."""
        affine = affine_of(self.layer)
        if affine is None or not self.layout.whole:
            return None
        scale, shift = (tensor.double().cpu() for tensor in affine)
        read = inputs[0] or Constants.none(self.channels)
        value = torch.where(scale == 0, 0, read.value * scale) + shift
        return Constants(read.known | (scale == 0), value)

    def reads(self) -> Tensor:
        """Return the channels with a scale other than zero."""
        affine = affine_of(self.layer)
        if affine is None or not self.layout.whole:
            return torch.ones(self.channels, dtype=torch.bool)
        return (affine[0] != 0).cpu()

    def keep_only(self, mask: Tensor) -> None:
        """Keep the features of these channels, one per entry."""
        entries = mask.repeat_interleave(self.layer.num_features // len(mask))
        _cut_norm(self.layer, entries)


class _Leaky(_PerChannel):
    """Rule of a `PReLU` with a slope per channel."""

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the constants of the input, negative ones times their slope."""
        return None if inputs[0] is None else leaked(self.layer, inputs[0])

    def reads(self) -> Tensor:
        """Return all channels."""
        return torch.ones(self.channels, dtype=torch.bool)

    def keep_only(self, mask: Tensor) -> None:
        """Keep the slopes of these channels."""
        _cut_entries(self.layer, ("weight",), mask)
        self.layer.num_parameters = int(mask.sum())


def leaked(layer: Any, read: Constants) -> Constants:
    """Return the constants that a `PReLU` makes of those of its input."""
    slope = layer.weight.detach().double().cpu()
    return Constants(read.known, torch.where(read.value < 0, slope * read.value, read.value))


class _InstanceNorm(_PerChannel):
    """Rule of an instance norm, which normalizes every channel of a sample for itself."""

    def constants(self, *inputs: Constants | None) -> Constants | None:
        """Return the shifts of channels with a scale of zero."""
        scale, shift = self.layer.weight, self.layer.bias
        return None if scale is None else Constants((scale.detach() == 0).cpu(), shift.detach().double().cpu())

    def reads(self) -> Tensor:
        """Return the channels with a scale other than zero."""
        scale = self.layer.weight
        return torch.ones(self.channels, dtype=torch.bool) if scale is None else (scale.detach() != 0).cpu()

    def keep_only(self, mask: Tensor) -> None:
        """Keep the features of these channels."""
        _cut_norm(self.layer, mask)


class _Depthwise(_PerChannel):
    """Rule of a convolution with as many groups as channels."""

    def constants(self, *inputs: Constants | None) -> Constants:
        """Return the biases of channels without weights."""
        weight, bias = self.layer.weight.detach(), self.layer.bias
        shift = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        return Constants((weight == 0).flatten(1).all(1).cpu(), shift.double().cpu())

    def reads(self) -> Tensor:
        """Return the channels with a weight other than zero."""
        weight: Tensor = self.layer.weight.detach()
        return (weight != 0).flatten(1).any(1).cpu()

    def keep_only(self, mask: Tensor) -> None:
        """Keep the kernels of these channels."""
        _cut_entries(self.layer, ("weight", "bias"), mask)
        self.layer.in_channels = self.layer.out_channels = self.layer.groups = int(mask.sum())


def affine_of(norm: Any) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift (features,) of a batch norm in eval mode, None if it uses the batch's statistics."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _cut_norm(norm: Any, entries: Tensor) -> None:
    """Keep only some features of a batch norm."""
    _cut_entries(norm, ("weight", "bias", "running_mean", "running_var"), entries)
    norm.num_features = int(entries.sum())


def _cut_entries(layer: Any, names: Sequence[str], entries: Tensor) -> None:
    """Keep only some entries of the first axis of a layer's tensors."""
    for name in names:
        tensor = getattr(layer, name)
        if isinstance(tensor, nn.Parameter):
            setattr(layer, name, nn.Parameter(tensor.detach()[entries], requires_grad=tensor.requires_grad))
        elif tensor is not None:
            setattr(layer, name, tensor[entries])


def batch_norm(site: Site) -> ChannelRule | None:
    """Return the rule of batch norms, whose channels are those of their input, or lie on axis 1."""
    source, layer = operand(site.node), site.module
    if source is None or layer is None:
        return None
    features, rank = int(layer.num_features), NORMS[torch_class(layer)]  # type: ignore[arg-type]
    read = site.layouts[source]
    if read.channels is None:
        layout = Layout(rank or read.rank, features)
        known = layout.rank is not None
        return UnknownRule(site.node, [source], layout) if known else None
    fits = read.rank is not None and read.axis == 1 and (features % read.channels == 0)
    if layer not in site.free or layer.training or not fits:
        return None
    return _BatchNorm(site.node, source, read, layer)


def prelu(site: Site) -> ChannelRule | None:
    """Return the rule of `PReLU`, whose channels are on axis 1, or which has one slope for all."""
    source, layer = operand(site.node), site.module
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layer is None or layout.channels is None:
        return None
    if layer.num_parameters == 1:
        return Channelwise(site.node, [source], layout, partial(leaked, layer))
    fits = layout.whole and layout.axis == 1 and layout.rank is not None and layout.channels == layer.num_parameters
    return _Leaky(site.node, source, layout, layer) if fits and layer in site.free else None


def instance_norm(site: Site) -> ChannelRule | None:
    """Return the rule of instance norms of batches of maps."""
    source, layer = operand(site.node), site.module
    layout = site.layouts[source] if source is not None else Layout()
    if source is None or layer not in site.free or layer is None or layer.training or not layout.whole:
        return None
    fits = layout.axis == 1 and layout.rank == INSTANCE_NORMS[torch_class(layer)]
    return _InstanceNorm(site.node, source, layout, layer) if fits and layout.channels == layer.num_features else None


def depthwise(site: Site) -> ChannelRule | None:
    """Return the rule of convolutions with as many groups as input and output channels; None for others."""
    source, layer = operand(site.node), site.module
    if source is None or layer is None or len(site.node.all_input_nodes) != 1:
        return None
    read, channels = site.layouts[source], layer.in_channels
    if layer.groups != channels or layer.out_channels != channels or layer not in site.free:
        return None
    if not read.whole or read.axis != 1 or read.channels != channels:
        return None
    return _Depthwise(site.node, source, Layout(CONVOLUTIONS[torch_class(layer)], read.channels), layer)
