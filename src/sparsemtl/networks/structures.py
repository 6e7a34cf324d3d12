"""Attention heads and feed-forward neurons as units: rows of the layers that make them, columns of their reader.

Units are found by one forward pass that is cut at the input of every linear layer, so that gradients show which outputs
reach which inputs directly. A layer makes units of another layer's input if each block of its outputs reaches one block
of the inputs and no other: blocks of one feature are neurons, blocks of as many features as a head has are heads. In
this pass linear layers return random numbers, so that units whose weights are zero are found as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from sparsemtl.errors import MaskError
from sparsemtl.networks.coverage import CoverageOptions
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.roles import is_transposed_linear
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.tasks.nests import map_tensors, tensors_in

Kind = Literal["head", "neuron"]


@dataclass(frozen=True, eq=False)
class Part:
    """Entries of one parameter by unit.

    Attributes:
        name: name of the parameter.
        axis: axis along which units lie.
        units: number of the unit of each position along the axis.
    """

    name: str
    axis: int
    units: Tensor = field(repr=False)

    @cached_property
    def order(self) -> Tensor:
        """Positions along the axis by unit, and by position within a unit."""
        return self.units.argsort(stable=True)


@dataclass(frozen=True, eq=False)
class Structure:
    """Units of one layer's input.

    Attributes:
        kind: `head` or `neuron`.
        count: number of units.
        parts: entries of parameters that belong to them, those of the weight that reads the units last.
    """

    kind: Kind
    count: int
    parts: tuple[Part, ...]


def find_structures(model: nn.Module, x: Any, kind: Kind, tasks: tuple[str, ...] | None = None) -> dict[str, Structure]:
    """Return the attention heads, or the feed-forward neurons, of the shared layers.

    A head is the rows of the query, key and value projections with their biases, and the columns of the output
    projection. Where several heads share keys and values, they are one unit; where all do, a unit is the rows of the
    query projection and the columns of the output projection. A neuron is the rows of the layers in front of an
    activation, of both in gated ones, with their biases, and the column of the layer behind it. Layers that are called
    more than once are left whole.

    Args:
        model: a `MultiTaskModel`.
        x: an input that the model accepts.
        kind: `head` or `neuron`.
        tasks: tasks to run, all by default.

    Returns:
        name of the weight whose columns read the units -> the units.

    Raises:
        MaskError: if there are none.
    """
    shared = maskable_parameters(model, mask_all=True)
    names = {module: name for name, module in model.named_modules()}
    with preserve_model_state(model):
        probe = _Probe(model, x, tasks)
        found = probe.neurons() if kind == "neuron" else probe.heads()
        structures = {
            f"{names[reader]}.weight": Structure(
                kind, count, tuple(part for part in _parts(names, reader, makers, count) if part.name in shared)
            )
            for reader, makers, count in found
            if f"{names[reader]}.weight" in shared
        }
    if kind == "head":
        structures |= {
            f"{name}.out_proj.weight": _multihead(name, module)
            for module, name in names.items()
            if isinstance(module, nn.MultiheadAttention) and f"{name}.out_proj.weight" in shared
        }
    if not structures:
        what = "attention heads" if kind == "head" else "feed-forward neurons"
        raise MaskError(f"{type(model).__name__}: no {what} were found among the shared layers.")
    return structures


def restricted(
    structures: Mapping[str, Structure], model: nn.Module, **options: Unpack[CoverageOptions]
) -> dict[str, Structure]:
    """Return the units whose reading weight `only` and `exclude` name, each with those of its parts that they name.

    A bias belongs to the weight of its module.

    Args:
        structures: layer -> its units, as `find_structures` returns them.
        model: the model.
        options: see `CoverageOptions`; without patterns nothing changes.
    """
    if not any(options.values()):
        return dict(structures)
    layers = maskable_parameters(model, **options)
    modules = {name.rpartition(".")[0] for name in layers}
    left = maskable_parameters(model).keys() - layers.keys()
    allowed = maskable_parameters(model, mask_all=True, exclude=options.get("exclude")).keys() - left

    def named(part: Part) -> bool:
        return part.name in allowed and part.name.rpartition(".")[0] in modules

    return {
        layer: replace(found, parts=tuple(filter(named, found.parts)))
        for layer, found in structures.items()
        if layer in layers
    }


def structures_to_state(structures: Mapping[str, Structure]) -> dict[str, Any]:
    """Return structures as plain values and tensors, for a checkpoint."""
    return {
        layer: {"kind": own.kind, "count": own.count, "parts": [[p.name, p.axis, p.units] for p in own.parts]}
        for layer, own in structures.items()
    }


def structures_from_state(state: Mapping[str, Any]) -> dict[str, Structure]:
    """Return the structures of a state of `structures_to_state`."""
    return {
        layer: Structure(own["kind"], own["count"], tuple(Part(*part) for part in own["parts"]))
        for layer, own in state.items()
    }


_Makers = Mapping[nn.Module, int]
"""Layer -> number of equal parts of its outputs that each hold all units, such as 3 of a fused query, key and value."""


class _Probe:
    """Direct dependence of the inputs of linear layers on the outputs of others, in one forward pass."""

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

    def neurons(self) -> Iterator[tuple[nn.Module, _Makers, int]]:
        """Yield (reader, its makers, number of neurons)."""
        readers = {layer: self._makers_of(read) for layer, read in self._read.items()}
        for reader, makers in readers.items():
            shared = [maker for maker in makers if sum(maker in others for others in readers.values()) > 1]
            count = self._read[reader].shape[-1]
            if makers and not shared and not self._ends.intersection(makers):
                fits = self._fits(reader, makers, count)
                if len(fits) == len(makers):
                    yield reader, fits, count

    def heads(self) -> Iterator[tuple[nn.Module, _Makers, int]]:
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
        units = _contiguous(read.shape[-1], count, 1)
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


def _contiguous(width: int, count: int, parts: int) -> Tensor:
    """Return the unit of each of `width` features that consist of equal parts, each with all units in order."""
    return torch.arange(width) % (width // parts) // (width // (parts * count))


def _layouts(width: int, count: int) -> dict[int, Tensor]:
    """Return number of equal parts -> the units of the features, for numbers that divide the features evenly."""
    return {parts: _contiguous(width, count, parts) for parts in (1, 2, 3) if not width % (parts * count)}


def _parts(names: Mapping[nn.Module, str], reader: nn.Module, makers: _Makers, count: int) -> Iterator[Part]:
    for maker, parts in makers.items():
        axis = 1 if is_transposed_linear(maker) else 0
        weight: Tensor = maker.weight  # type: ignore[assignment]
        units = _contiguous(weight.shape[axis], count, parts)
        yield Part(f"{names[maker]}.weight", axis, units)
        if maker.bias is not None:
            yield Part(f"{names[maker]}.bias", 0, units)
    axis = 0 if is_transposed_linear(reader) else 1
    read: Tensor = reader.weight  # type: ignore[assignment]
    yield Part(f"{names[reader]}.weight", axis, _contiguous(read.shape[axis], count, 1))


def _multihead(name: str, module: nn.MultiheadAttention) -> Structure:
    """Return the heads of torch's attention."""
    width, count = module.embed_dim, module.num_heads
    rows = [
        Part(f"{name}.{own}", 0, _contiguous(len(parameter), count, len(parameter) // width))
        for own in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
        if (parameter := module._parameters.get(own)) is not None
    ]
    return Structure("head", count, (*rows, Part(f"{name}.out_proj.weight", 1, _contiguous(width, count, 1))))
