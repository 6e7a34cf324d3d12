"""Forward pass that shows which linear layers make the heads and neurons that another one reads.

The pass is cut at the input of every linear layer, so that gradients show which outputs reach which inputs directly. A
layer makes units of another layer's input if each block of its outputs reaches one block of the inputs and no other:
blocks of one feature are neurons, blocks of as many features as a head has are heads. In this pass linear layers return
random numbers, so that units whose weights are zero are found as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.networks.roles import is_transposed_linear
from sparsemtl.tasks.nests import map_tensors, tensors_in

Makers = Mapping[nn.Module, int]
"""Layer -> number of equal parts of its outputs that each hold all units, such as 3 of a fused query, key and value."""


class StructureProbe:
    """Direct dependence of the inputs of linear layers on the outputs of others, in one forward pass.

    Args:
        model: a `MultiTaskModel`, in eval mode.
        x: an input that it accepts.
        tasks: tasks to run, all if None.
    """

    def __init__(self, model: nn.Module, x: Any, tasks: tuple[str, ...] | None) -> None:
        self._ancestors = _ancestors(model)
        self._generator = torch.Generator().manual_seed(0)
        self._inputs: dict[nn.Module, list[Tensor]] = {}
        self._outputs: dict[nn.Module, list[Tensor]] = {}
        self._whole: list[Tensor] = []  # read by a layer in a structure of several tensors
        layers = [module for module in model.modules() if _is_linear(module)]
        hooks = [layer.register_forward_pre_hook(self._cut) for layer in layers]
        hooks += [layer.register_forward_hook(self._keep) for layer in layers]
        try:
            outputs = model(x, tasks=tasks)
        finally:
            for hook in hooks:
                hook.remove()
        self._made = {layer: made[0] for layer, made in self._outputs.items() if len(made) == 1}
        self._read = {layer: read[0] for layer, read in self._inputs.items() if layer in self._made}
        self._ends = {layer for end in (*self._whole, *tensors_in(outputs)) for layer in self._makers_of(end)}

    def _cut(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Note the input of a layer, and let the layer read a copy without a graph."""
        if isinstance(args[0], Tensor):
            self._inputs.setdefault(layer, []).append(args[0])
        else:
            self._whole += [tensor for tensor in tensors_in(args[0]) if tensor.is_floating_point()]
        return (map_tensors(_leaf, args[0]), *args[1:])

    def _keep(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Let the layer return positive numbers, at which no activation is zero and no weight of attention is."""
        made = torch.rand(output.shape, generator=self._generator).add(0.5).to(output).requires_grad_()
        self._outputs.setdefault(layer, []).append(made)
        return made.clone()  # which an activation may change in place

    def neurons(self) -> Iterator[tuple[nn.Module, Makers, int]]:
        """Yield (reader, its makers, number of neurons)."""
        readers = {layer: self._makers_of(read) for layer, read in self._read.items()}
        for reader, makers in readers.items():
            shared = [maker for maker in makers if sum(maker in others for others in readers.values()) > 1]
            count = self._read[reader].shape[-1]
            if makers and not shared and not self._ends.intersection(makers):
                fits = self._fits(reader, makers, count)
                if len(fits) == len(makers):
                    yield reader, fits, count

    def heads(self) -> Iterator[tuple[nn.Module, Makers, int]]:
        """Yield (reader, its makers, number of heads)."""
        for reader, read in self._read.items():
            makers, width = self._makers_of(read), read.shape[-1]
            counts = [count for count in self._head_counts(reader) if 1 < count < width and not width % count]
            if not makers or not counts or len(self._fits(reader, makers, width)) == len(makers):
                continue
            fits = {count: self._fits(reader, makers, count) for count in counts}
            best = max(counts, key=lambda count: (len(fits[count]), count))
            if fits[best]:
                yield reader, fits[best], best

    def _makers_of(self, read: Tensor) -> tuple[nn.Module, ...]:
        """Return the layers whose outputs reach a tensor directly."""
        return tuple(self._reached(read, torch.ones(read.shape[-1], dtype=torch.bool)))

    def _fits(self, reader: nn.Module, makers: Sequence[nn.Module], count: int) -> dict[nn.Module, int]:
        """Return the makers each of whose blocks of outputs reaches only its own of `count` blocks of the input."""
        read = self._read[reader]
        units = contiguous_units(read.shape[-1], count, 1)
        layouts = {maker: _layouts(self._made[maker].shape[-1], count) for maker in makers}
        for digit in range(math.ceil(math.log2(count))):  # any two units differ in a digit
            for value in (0, 1):
                reached = self._reached(read, (units >> digit) & 1 == value)
                for maker in reached:
                    layouts[maker] = {
                        parts: of
                        for parts, of in layouts[maker].items()
                        if bool(((of[reached[maker]] >> digit) & 1 == value).all())
                    }
        return {maker: min(fitting) for maker, fitting in layouts.items() if fitting}

    def _reached(self, tensor: Tensor, chosen: Tensor) -> dict[nn.Module, Tensor]:
        """Return layer -> which of its outputs the chosen features of a tensor depend on, of those that do."""
        if not tensor.requires_grad:
            return {}
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.rand(tensor.shape, generator=generator).add(0.5).to(tensor) * chosen.to(tensor)
        gradients = torch.autograd.grad(
            tensor, list(self._made.values()), cotangent, retain_graph=True, allow_unused=True
        )
        reached = {}
        for layer, gradient in zip(self._made, gradients, strict=True):
            if gradient is not None and bool((used := (gradient != 0).flatten(0, -2).any(0)).any()):
                reached[layer] = used.cpu()
        return reached

    def _head_counts(self, layer: nn.Module) -> set[int]:
        """Return the numbers of heads that the modules around a layer name."""
        counts: set[int] = set()
        for module in self._ancestors[layer]:
            for holder in (module, getattr(module, "config", None)):
                for name, value in vars(holder).items() if hasattr(holder, "__dict__") else ():
                    if _HEADS.fullmatch(name) and type(value) is int:
                        counts.add(value)
        return counts


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


_HEADS = re.compile(r"(num|n)?_?(attention|key_value|kv|query)?_?heads?(_num)?")


def _ancestors(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """Return module -> the modules that contain it."""
    around: dict[nn.Module, list[nn.Module]] = {}
    for module in model.modules():
        for inner in module.modules():
            around.setdefault(inner, []).append(module)
    return around


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed_linear(module)


def contiguous_units(width: int, count: int, parts: int) -> Tensor:
    """Return the unit of each of `width` features that consist of equal parts, each with all units in order."""
    return torch.arange(width) % (width // parts) // (width // (parts * count))


def _layouts(width: int, count: int) -> dict[int, Tensor]:
    """Return number of equal parts -> the units of the features, for numbers that divide the features evenly."""
    return {parts: contiguous_units(width, count, parts) for parts in (1, 2, 3) if not width % (parts * count)}
