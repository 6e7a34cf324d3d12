"""Granularities of masks: what is kept or dropped as a whole."""

from __future__ import annotations

import abc
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from sparsemtl.criteria.channels import channel_units
from sparsemtl.criteria.neurons import select_alive
from sparsemtl.criteria.select import Keep, select
from sparsemtl.criteria.select_units import select_channels, select_structures
from sparsemtl.criteria.two_of_four import check_half, input_axes, select_two_of_four
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.networks.coverage import CoverageOptions
from sparsemtl.networks.model import MultiTaskModel, first_group
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.structures import Kind, find_structures, restricted
from sparsemtl.tasks.batches import Loaders

GranularityName = Literal["weight", "2:4", "channel", "head", "neuron"]


class MaskChoice(NamedTuple):
    """Choice of masks at a granularity.

    Attributes:
        names: parameters whose weights may be dropped.
        keep_highest: function of their scores and of `keep`, `scope` and `min_per_layer` that returns the mask.
    """

    names: Set[str]
    keep_highest: Callable[..., dict[str, Tensor]]


class Granularity(abc.ABC):
    """Base of granularities.

    Attributes:
        single: single weights are kept or dropped; otherwise units, to which biases and norms belong.
        units_may_die: a unit may lose all of its incoming weights, and keep its bias.
    """

    single: bool = False
    units_may_die: bool = False

    @abc.abstractmethod
    def check(self, keep: Keep, *, target_sparsity: float | None = None, min_per_unit: int = 0) -> None:
        """Raise unless masks may keep these fractions, and as many incoming weights per unit.

        Raises:
            ParameterError: naming the option.
        """

    @abc.abstractmethod
    def selection(
        self,
        model: MultiTaskModel,
        loaders: Loaders,
        patterns: CoverageOptions,
        *,
        mask_all: bool = False,
        min_per_unit: int = 0,
    ) -> MaskChoice:
        """Return the choice of masks for a model.

        Args:
            model: the model.
            loaders: data, of which units read the first batch.
            patterns: weights to choose from; where units are chosen, those of the named layers.
            mask_all: single weights of biases and norms may be dropped as well.
            min_per_unit: incoming weights that every unit keeps at least.
        """


class _Weights(Granularity):
    """Single weights."""

    single = True
    units_may_die = True

    def check(self, keep: Keep, *, target_sparsity: float | None = None, min_per_unit: int = 0) -> None:
        """Accept everything."""

    def selection(
        self,
        model: MultiTaskModel,
        loaders: Loaders,
        patterns: CoverageOptions,
        *,
        mask_all: bool = False,
        min_per_unit: int = 0,
    ) -> MaskChoice:
        """Return the choice among all weights that masks cover."""
        alive = partial(select_alive, model=model, min_per_unit=min_per_unit)
        names = maskable_parameters(model, mask_all=mask_all, **patterns).keys()
        return MaskChoice(names, alive if min_per_unit else select)


class _TwoOfFour(Granularity):
    """Two of every four consecutive inputs of an output."""

    single = True

    def check(self, keep: Keep, *, target_sparsity: float | None = None, min_per_unit: int = 0) -> None:
        """Raise unless half is kept."""
        _refuse_min_per_unit(min_per_unit, "'2:4', every unit keeps half of its incoming weights.")
        check_half(keep, target_sparsity)

    def selection(
        self,
        model: MultiTaskModel,
        loaders: Loaders,
        patterns: CoverageOptions,
        *,
        mask_all: bool = False,
        min_per_unit: int = 0,
    ) -> MaskChoice:
        """Return the choice among all weights that masks cover."""
        names = maskable_parameters(model, mask_all=mask_all, **patterns).keys()
        return MaskChoice(names, partial(select_two_of_four, axes=input_axes(model)))


class _Channels(Granularity):
    """Output channels, with their bias and the norm behind them."""

    def check(self, keep: Keep, *, target_sparsity: float | None = None, min_per_unit: int = 0) -> None:
        """Raise for a floor of single weights."""
        _refuse_min_per_unit(min_per_unit, _WHOLE.format("channel"))

    def selection(
        self,
        model: MultiTaskModel,
        loaders: Loaders,
        patterns: CoverageOptions,
        *,
        mask_all: bool = False,
        min_per_unit: int = 0,
    ) -> MaskChoice:
        """Return the choice among the channels of all layers, or of those that `patterns` name."""
        group = first_group(model, loaders)
        units = channel_units(model, group.x, group.tasks)
        if any(patterns.values()):
            layers = maskable_parameters(model, **patterns)
            allowed = maskable_parameters(model, mask_all=True, exclude=patterns.get("exclude"))
            units = {layer: tuple(n for n in units[layer] if n in allowed) for layer in units if layer in layers}
        names = {name for names in units.values() for name in names}
        return MaskChoice(names, partial(select_channels, units=units))


@dataclass(frozen=True)
class _Structures(Granularity):
    """Attention heads, or hidden units of feed-forward layers, over all layers that make and read them."""

    kind: Kind

    def check(self, keep: Keep, *, target_sparsity: float | None = None, min_per_unit: int = 0) -> None:
        """Raise for a floor of single weights."""
        _refuse_min_per_unit(min_per_unit, _WHOLE.format(self.kind))

    def selection(
        self,
        model: MultiTaskModel,
        loaders: Loaders,
        patterns: CoverageOptions,
        *,
        mask_all: bool = False,
        min_per_unit: int = 0,
    ) -> MaskChoice:
        """Return the choice among the units of all layers, or of those that `patterns` name."""
        group = first_group(model, loaders)
        structures = restricted(find_structures(model, group.x, self.kind, group.tasks), model, **patterns)
        names = {part.name for found in structures.values() for part in found.parts}
        return MaskChoice(names, partial(select_structures, structures=structures))


_WHOLE = "{!r}, whole units are kept or dropped. Use `min_per_layer`."


def _refuse_min_per_unit(min_per_unit: int, why: str) -> None:
    if min_per_unit:
        raise ParameterError(f"`min_per_unit` is for granularity 'weight'; with {why}")


_GRANULARITIES: dict[str, Granularity] = {
    "weight": _Weights(),
    "2:4": _TwoOfFour(),
    "channel": _Channels(),
    "head": _Structures("head"),
    "neuron": _Structures("neuron"),
}


def granularity_of(name: str) -> Granularity:
    """Return the granularity of a name.

    Raises:
        ParameterError: if there is none of this name.
    """
    if name not in _GRANULARITIES:
        raise ParameterError(unknown_name("granularity", name, _GRANULARITIES))
    return _GRANULARITIES[name]
