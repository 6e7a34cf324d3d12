"""Selection of exactly the K units of highest score: output channels, attention heads and neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from sparsemtl.criteria.select import Scope, select
from sparsemtl.errors import MaskError
from sparsemtl.networks.structures import Structure


def select_channels(
    scores: Mapping[str, Tensor],
    units: Mapping[str, Sequence[str]],
    keep: float,
    *,
    scope: Scope = "global",
    min_per_layer: int = 1,
) -> dict[str, Tensor]:
    """Keep whole output channels: K = clamp(round(keep * C), 1, C) of the C channels of all layers together.

    A channel is a row of a layer's weight together with its bias and its norm's scale and shift, and its score is
    the mean over them, so that layers of different fan-in compare.

    Args:
        scores: parameter name -> scores, for all parameters named in `units`; others are kept whole.
        units: weight that names a layer -> all parameters whose first axis is the layer's output channels, as
            `channel_units` returns them.
        keep: fraction of the channels in (0, 1].
        scope: as in `select`.
        min_per_layer: channels that every layer keeps at least.

    Returns:
        parameter name -> bool tensor, constant along every channel; parameters in the order of `scores`.

    Raises:
        MaskError: if a score is missing or NaN.
        ParameterError: as in `select`.
    """
    for name in chain.from_iterable(units.values()):
        if name not in scores:
            raise MaskError(
                f"parameter {name!r} belongs to a channel but has no score. Channels need the scores of biases and "
                "norms too: make the criterion with mask_all=True."
            )
    channels = {
        layer: torch.cat([scores[name].double().flatten(1) if scores[name].ndim > 1 else scores[name].double()[:, None]
                          for name in names], dim=1).mean(1)
        for layer, names in units.items()
    }  # fmt: skip
    chosen = select(channels, keep, scope=scope, min_per_layer=min_per_layer)
    layer_of = {name: layer for layer, names in units.items() for name in names}
    return {
        name: _rows(chosen[layer_of[name]], score) if name in layer_of else torch.ones_like(score, dtype=torch.bool)
        for name, score in scores.items()
    }


def _rows(kept: Tensor, score: Tensor) -> Tensor:
    """Return a bool mask of the shape of `score` whose rows (first axis) are all True where `kept` is."""
    return kept.view(-1, *[1] * (score.ndim - 1)).expand(score.shape).clone()


def select_structures(
    scores: Mapping[str, Tensor],
    structures: Mapping[str, Structure],
    keep: float,
    *,
    scope: Scope = "global",
    min_per_layer: int = 1,
) -> dict[str, Tensor]:
    """Keep whole units: K = clamp(round(keep * U), 1, U) of the U units of all layers together.

    The score of a unit is the mean over its entries.

    Args:
        scores: parameter name -> scores, for all parameters of the structures; others are kept whole.
        structures: layer -> its units, as `find_structures` returns them.
        keep: fraction of the units in (0, 1].
        scope: as in `select`.
        min_per_layer: units that every layer keeps at least.

    Returns:
        parameter name -> bool tensor; parameters in the order of `scores`.

    Raises:
        MaskError: if a score is missing or NaN.
        ParameterError: as in `select`.
    """
    units = {layer: _unit_scores(scores, structure) for layer, structure in structures.items()}
    kept = select(units, keep, scope=scope, min_per_layer=min_per_layer)
    masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    for layer, structure in structures.items():
        for part in structure.parts:
            mask = masks[part.name]
            along = kept[layer][part.units.to(mask.device)]
            mask &= along.view(-1, *[1] * (mask.ndim - 1 - part.axis))
    return masks


def _unit_scores(scores: Mapping[str, Tensor], structure: Structure) -> Tensor:
    """Return the mean score of the entries of each unit."""
    entries = 0
    total = next(iter(scores.values())).new_zeros(structure.count, dtype=torch.float64)
    for part in structure.parts:
        if part.name not in scores:
            raise MaskError(
                f"parameter {part.name!r} belongs to a unit but has no score. Units need the scores of biases too: "
                "make the criterion with mask_all=True."
            )
        score = scores[part.name].movedim(part.axis, 0)
        total.index_add_(0, part.units.to(total.device), score.double().reshape(len(score), -1).sum(1))
        entries += score.numel()
    return total * structure.count / entries
