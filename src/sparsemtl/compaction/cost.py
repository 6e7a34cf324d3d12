"""Cost of a network: multiply-adds, parameters, memory of activations, milliseconds."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

from sparsemtl.compaction.inputs import tensors
from sparsemtl.compaction.timing.sparse_layers import SparseLinear
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import check_shapes
from sparsemtl.networks.modes import eval_mode

_COUNTED = (_ConvNd, nn.Linear, nn.RNNBase, nn.MultiheadAttention, SparseLinear)
"""Layers whose multiply-adds count."""


def macs(module: nn.Module, x: Any) -> int:
    """Count the multiply-adds of the convolutions, linear and recurrent layers in one forward pass.

    What padding reads counts as well, and so do the projections of torch's attention; norms, activations, the products
    of queries with keys and of attention with values, and convolutions that no module makes do not.

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
        name of every convolution, linear or recurrent layer and attention of torch's that ran -> its multiply-adds,
            over all its calls.
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        made = _macs_of_attention(layer, args, kwargs) if isinstance(layer, nn.MultiheadAttention) else None
        counts[name] = counts.get(name, 0) + (_macs_of(layer, args[0], output) if made is None else made)

    with _hooked(module, count, _COUNTED), _inferring(module):
        module(*args, **kwargs)
    return counts


def activations_by_layer(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, int]:
    """Count the numbers that every module returns in one forward pass in eval mode, over all its calls.

    Args:
        module: any module.
        args, kwargs: arguments of its forward pass.

    Returns:
        name of every module that ran -> the entries of the tensors in its outputs.
    """
    counts: dict[str, int] = {}

    def count(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        counts[name] = counts.get(name, 0) + sum(tensor.numel() for tensor in tensors(output))

    with _hooked(module, count, (nn.Module,)), _inferring(module):
        module(*args, **kwargs)
    return counts


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None], kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Call `hook(name, layer, args, kwargs, output)` behind every layer of some classes."""
    handles = [
        layer.register_forward_hook(partial(hook, name), with_kwargs=True)
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _macs_of(layer: nn.Module, x: Any, output: Any) -> int:
    if isinstance(layer, nn.RNNBase):
        matrices = (weight.numel() for name, weight in layer.named_parameters() if name.startswith("weight"))
        return int(x.data.numel()) // layer.input_size * sum(matrices)  # also of packed sequences
    if isinstance(layer, _ConvTransposeNd):
        return int(x.numel()) * layer.out_channels // layer.groups * prod(layer.kernel_size)
    if isinstance(layer, _ConvNd):
        return int(output.numel()) * layer.in_channels // layer.groups * prod(layer.kernel_size)
    if isinstance(layer, SparseLinear):
        return int(x.numel()) // layer.in_features * len(layer.values)
    assert isinstance(layer, nn.Linear)
    return int(output.numel()) * layer.in_features


def _macs_of_attention(layer: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the multiply-adds of the four projections, which torch does without calling a layer."""
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    width = layer.embed_dim
    read: int = 2 * query.numel() + key.numel() + value.numel()
    return int(read * width)


def parameter_count(module: nn.Module) -> int:
    """Count weights, biases, scales and shifts; a parameter with several names counts once.

    Examples:
        >>> sm.parameter_count(nn.Linear(3, 2))
        8

    Raises:
        ParameterError: if a parameter has no shape yet.
    """
    check_shapes(module)
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class ActivationMemory:
    """Memory of the tensors that one forward pass makes, in bytes.

    Tensors that share memory count once: a view, or what an operation in place returns. The module's weights and inputs
    do not count.

    Attributes:
        peak: largest sum of the tensors that are alive at the same time. A tensor is alive until nothing refers to it.
        total: sum of all tensors, also of those that were freed before the end.
    """

    peak: int
    total: int


def activation_memory(module: nn.Module, x: Any) -> ActivationMemory:
    """Measure the memory of the activations in one forward pass without gradients.

    Whatever torch's operators return counts; what an operator allocates and frees itself does not.

    Args:
        module: any module; it runs in eval mode, once.
        x: its input; all samples of a batch count.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sm.activation_memory(layers, torch.rand(1, 4))  # float32: 8 and 8 numbers at once, 18 in all
        ActivationMemory(peak=64, total=72)
    """
    return measure_activations(module, x)


def measure_activations(module: nn.Module, *args: Any, **kwargs: Any) -> ActivationMemory:
    """Measure `activation_memory` for a call with any arguments."""
    known = [*chain(module.parameters(), module.buffers()), *tensors((args, kwargs))]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which hides what it allocates
    try:
        with _inferring(module), _Allocations(known) as seen:
            module(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return ActivationMemory(seen.peak, seen.total)


class _Allocations(TorchDispatchMode):
    """Mode that counts the bytes of new storages.

    Args:
        known: tensors whose storages do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.total = self._live = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._storages = {id(storage) for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors(output):
            storage = tensor.untyped_storage()
            if id(storage) not in self._storages:
                self._storages.add(id(storage))
                self._live += storage.nbytes()
                self.total += storage.nbytes()
                weakref.finalize(storage, self._free, id(storage), storage.nbytes()).atexit = False
        self.peak = max(self.peak, self._live)
        return output

    def _free(self, key: int, count: int) -> None:
        self._storages.discard(key)
        self._live -= count


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
