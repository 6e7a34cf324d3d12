"""Cost of a network: multiply-adds, parameters, milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsemtl.errors import ParameterError
from sparsemtl.networks.modes import eval_mode


def macs(module: nn.Module, x: Any) -> int:
    """Count the multiply-adds of the convolutions and linear layers in one forward pass.

    What padding reads counts as well; norms, activations and convolutions that no module makes do not.

    Args:
        module: any module; it runs in eval mode, once.
        x: its input; all samples of a batch count.

    Examples:
        >>> sm.macs(nn.Conv2d(3, 8, kernel_size=3, padding=1), torch.rand(1, 3, 10, 10))
        21600
    """
    return sum(macs_by_layer(module, x).values())


def macs_by_layer(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, int]:
    """Count `macs` per layer.

    Args:
        module: as for `macs`.
        args, kwargs: arguments of its forward pass.

    Returns:
        name of every convolution and linear layer that ran -> its multiply-adds, over all its calls.
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[name] = counts.get(name, 0) + _macs_of(layer, inputs[0], output)

    hooks = [
        layer.register_forward_hook(partial(count, name))
        for name, layer in module.named_modules()
        if isinstance(layer, (_ConvNd, nn.Linear))
    ]
    try:
        with _inferring(module):
            module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _macs_of(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(layer, _ConvTransposeNd):
        return x.numel() * layer.out_channels // layer.groups * prod(layer.kernel_size)
    if isinstance(layer, _ConvNd):
        return output.numel() * layer.in_channels // layer.groups * prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return output.numel() * layer.in_features


def parameter_count(module: nn.Module) -> int:
    """Count weights, biases, scales and shifts; a parameter with several names counts once.

    Examples:
        >>> sm.parameter_count(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def latency(module: nn.Module, x: Any, *, warmup: int = 5, repeats: int = 30) -> float:
    """Return the median time of one forward pass, in milliseconds, with torch's present number of threads.

    Args:
        module: any module; it runs in eval mode.
        x: its input.
        warmup: number of passes that are not timed, at least 0.
        repeats: number of passes that are timed, at least 1.
    """
    if warmup < 0 or repeats < 1:
        raise ParameterError(f"`warmup` must be at least 0 and `repeats` at least 1, got {warmup} and {repeats}.")
    times = []
    with _inferring(module):
        for _ in range(warmup):
            module(x)
        for _ in range(repeats):
            _finish(module)
            start = time.perf_counter()
            module(x)
            _finish(module)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


@contextmanager
def _inferring(module: nn.Module) -> Iterator[None]:
    with eval_mode(module), torch.inference_mode():
        yield


def _finish(module: nn.Module) -> None:
    """Wait for the GPUs of a module."""
    for device in {parameter.device for parameter in module.parameters() if parameter.is_cuda}:
        torch.cuda.synchronize(device)
