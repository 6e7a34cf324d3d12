"""Attention heads and feed-forward neurons as units: rows of the layers that make them, columns of their reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import Unpack

from sparsemtl.errors import MaskError
from sparsemtl.networks.coverage import CoverageOptions
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.roles import is_transposed_linear
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.structure_probe import Makers, StructureProbe, contiguous_units

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
        probe = StructureProbe(model, x, tasks)
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


def _parts(names: Mapping[nn.Module, str], reader: nn.Module, makers: Makers, count: int) -> Iterator[Part]:
    for maker, parts in makers.items():
        axis = 1 if is_transposed_linear(maker) else 0
        weight: Tensor = maker.weight  # type: ignore[assignment]
        units = contiguous_units(weight.shape[axis], count, parts)
        yield Part(f"{names[maker]}.weight", axis, units)
        if maker.bias is not None:
            yield Part(f"{names[maker]}.bias", 0, units)
    axis = 0 if is_transposed_linear(reader) else 1
    read: Tensor = reader.weight  # type: ignore[assignment]
    yield Part(f"{names[reader]}.weight", axis, contiguous_units(read.shape[axis], count, 1))


def _multihead(name: str, module: nn.MultiheadAttention) -> Structure:
    """Return the heads of torch's attention."""
    width, count = module.embed_dim, module.num_heads
    rows = [
        Part(f"{name}.{own}", 0, contiguous_units(len(parameter), count, len(parameter) // width))
        for own in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
        if (parameter := module._parameters.get(own)) is not None
    ]
    return Structure("head", count, (*rows, Part(f"{name}.out_proj.weight", 1, contiguous_units(width, count, 1))))
