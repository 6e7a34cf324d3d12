"""Cost of a network: multiply-adds, parameters, milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    return latencies([module], x, warmup=warmup, repeats=repeats)[0]


def latencies(modules: Sequence[nn.Module], x: Any, *, warmup: int = 5, repeats: int = 30) -> list[float]:
    """Return the `latency` of each module; they take turns, so that other work on the machine slows all of them."""
    if warmup < 0 or repeats < 1:
        raise ParameterError(f"`warmup` must be at least 0 and `repeats` at least 1, got {warmup} and {repeats}.")
    devices = {p.device for module in modules for p in module.parameters() if p.is_cuda}
    times: list[list[float]] = [[] for _ in modules]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_inferring(module))
        for _ in range(warmup):
            for module in modules:
                module(x)
        for _ in range(repeats):
            for module, own in zip(modules, times, strict=True):
                _finish(devices)
                start = time.perf_counter()
                module(x)
                _finish(devices)
                own.append(time.perf_counter() - start)
    return [1000 * statistics.median(own) for own in times]


@contextmanager
def _inferring(module: nn.Module) -> Iterator[None]:
    with eval_mode(module), torch.inference_mode():
        yield


def _finish(devices: Iterable[torch.device]) -> None:
    """Wait for GPUs."""
    for device in devices:
        torch.cuda.synchronize(device)
