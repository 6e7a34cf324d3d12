"""Output channels as units: the rows of a layer's weight, its bias, and the norm behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.outputs import NORMS, channel_axis
from sparsemtl.networks.shared_coverage import maskable_parameters


def channel_units(model: nn.Module, x: Any, tasks: tuple[str, ...] | None = None) -> dict[str, tuple[str, ...]]:
    """Return, for every shared layer with output channels, the parameters that make up its channels.

    A norm belongs to a layer if it reads the very tensor that the layer returned, as one forward pass shows, and scales
    its channels. If weight, bias, scale and shift of a channel are masked together, the channel is exactly zero behind
    the norm. A norm that is not shared is omitted, for no mask covers it.

    Args:
        model: a `MultiTaskModel`.
        x: an input that the model accepts.
        tasks: tasks to run, all by default.

    Returns:
        name of a layer's weight -> names of all its parameters by channel, the weight first.
    """
    shared = maskable_parameters(model, mask_all=True)
    prefixes = {module: name for name, module in model.named_modules()}
    layers = [
        m
        for m in prefixes
        if isinstance(m, (_ConvNd, nn.Linear))
        and not getattr(m, "transposed", False)
        and f"{prefixes[m]}.weight" in shared
    ]
    norms = norms_behind(model, layers, x, tasks)
    return {
        f"{prefixes[layer]}.weight": tuple(
            name
            for module in (layer, *norms.get(layer, ()))
            for own in module._parameters
            if (name := f"{prefixes[module]}.{own}") in shared
        )
        for layer in layers
    }


def norms_behind(
    model: nn.Module, layers: Sequence[nn.Module], x: Any, tasks: tuple[str, ...] | None = None
) -> dict[nn.Module, list[nn.Module]]:
    """Return layer -> the norms that read the very tensor that it returns, for layers that a forward pass calls.

    Args:
        model: a `MultiTaskModel`.
        layers: layers of the model.
        x: an input that the model accepts.
        tasks: tasks to run, all by default.
    """
    made_by: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # the id of a tensor is unique only while the tensor is alive
    norms: dict[nn.Module, list[nn.Module]] = {}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        made_by[id(output)] = module
        norms.setdefault(module, [])
        kept.append(output)

    def match(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read: Any = next(iter((*args, *kwargs.values())), None)
        layer = made_by.get(id(read))
        if layer is None or module in norms[layer]:
            return
        if channel_axis(layer, read.ndim) == channel_axis(module, read.ndim):
            norms[layer].append(module)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    hooks += [m.register_forward_pre_hook(match, with_kwargs=True) for m in model.modules() if isinstance(m, NORMS)]
    try:
        with preserve_model_state(model), torch.no_grad():
            model(x, tasks=tasks)
    finally:
        for hook in hooks:
            hook.remove()
    return norms
