"""Output channels as units: a layer's weight rows, its bias, and the norm behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsemtl.models import maskable_parameters
from sparsemtl.modes import evaluating

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)


def channel_units(model: nn.Module, x: Any, tasks: tuple[str, ...] | None = None) -> dict[str, tuple[str, ...]]:
    """Find, for every shared layer with output channels, the parameters that make up its channels.

    A norm belongs to a layer if it reads the very tensor that the layer gave, which one forward pass tells. With
    weight, bias, scale and shift of a channel masked together the channel is exactly zero after a batch norm.

    Args:
        model: a `MultiTaskModel`.
        x: an input that the model accepts.
        tasks: the tasks to run, all by default.

    Returns:
        name of a layer's weight -> names of all its parameters by channel, the weight first.
    """
    maskable = maskable_parameters(model)
    prefixes = {module: name for name, module in model.named_modules()}
    layers = [
        m
        for m in prefixes
        if isinstance(m, (_ConvNd, nn.Linear))
        and not getattr(m, "transposed", False)
        and f"{prefixes[m]}.weight" in maskable
    ]
    made_by: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # a tensor alive keeps its id its own
    norm_of: dict[nn.Module, nn.Module] = {}

    def remember(module: nn.Module, _: Any, output: Tensor) -> None:
        made_by[id(output)] = module
        kept.append(output)

    def recognise(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layer = made_by.get(id(inputs[0]))
        if layer is not None:
            norm_of[layer] = module

    hooks = [layer.register_forward_hook(remember) for layer in layers]
    hooks += [m.register_forward_pre_hook(recognise) for m in prefixes if isinstance(m, NORMS)]
    try:
        with torch.no_grad(), evaluating(model):
            model(x, tasks=tasks)
    finally:
        for hook in hooks:
            hook.remove()
    return {f"{prefixes[layer]}.weight": _names(layer, norm_of.get(layer), prefixes) for layer in layers}


def _names(layer: nn.Module, norm: nn.Module | None, prefixes: dict[nn.Module, str]) -> tuple[str, ...]:
    channels = len(layer.get_parameter("weight"))
    names = [f"{prefixes[layer]}.{name}" for name, _ in layer.named_parameters(recurse=False)]
    if norm is not None:
        names += [f"{prefixes[norm]}.{n}" for n, p in norm.named_parameters(recurse=False) if len(p) == channels]
    return tuple(names)
