"""Names and shapes of task networks, compared with a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsemtl.errors import MaskError, unknown_name
from sparsemtl.networks.outputs import row_axes

if TYPE_CHECKING:
    from sparsemtl.networks.task_networks import TaskNetwork


def check_fit(networks: Mapping[str, TaskNetwork], model: nn.Module) -> None:
    """Raise unless every name is one of the model's, and every tensor fits the model's tensor or module.

    Args:
        networks: task -> its network.
        model: the model, without a wrapper.

    Raises:
        MaskError: naming the task and the first tensor that does not fit.
    """
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    modules = dict(model.named_modules())
    kind = type(model).__name__
    for task, network in networks.items():
        for name, tensor in {**network.gradient_mask, **network.kept_weights, **network.own_tensors}.items():
            _check_tensor(name, tensor, tensors, task, kind)
        for name, factor in network.weight_factors.items():
            _check_tensor(name, factor, tensors, task, kind, broadcast=True)
        for name, factor in network.output_factors.items():
            _check_channels(name, factor, modules, task, kind)


def _check_tensor(
    name: str, tensor: Tensor | None, known: Mapping[str, Tensor], task: str, model: str, *, broadcast: bool = False
) -> None:
    if name not in known:
        raise MaskError(f"task {task!r}: {model} has no parameter or buffer {name!r}. Was it made for another model?")
    expected = known[name].shape
    if tensor is not None and tensor.shape != expected and not (broadcast and broadcasts(tensor.shape, expected)):
        raise MaskError(
            f"task {task!r}, {name!r}: the network has shape {tuple(tensor.shape)}, {model} has {tuple(expected)}. "
            "Was it made for another model?"
        )


def _check_channels(name: str, factor: Tensor, known: Mapping[str, nn.Module], task: str, model: str) -> None:
    if name not in known:
        raise MaskError(f"task {task!r}: {model}: {unknown_name('module', name, known)}")
    parameter, axis = next(iter((row_axes(known[name]) or {}).items()), (None, 0))
    channels = len(factor) if parameter is None else known[name].get_parameter(parameter).shape[axis]
    if factor.shape != (channels,):
        raise MaskError(
            f"task {task!r}: the factor on the outputs of {name!r} has shape {tuple(factor.shape)}, that module of "
            f"{model} has {channels} channels. Was it made for another model?"
        )


def broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Return True if a factor of one shape is broadcast to a parameter of as many axes."""
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))
