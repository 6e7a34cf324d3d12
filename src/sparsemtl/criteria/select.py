"""Selection of exactly the K highest scores, with ties broken by index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.criteria.finite import check_scores
from sparsemtl.errors import MaskError, ParameterError, unknown_name
from sparsemtl.networks.coverage import CoverageOptions
from sparsemtl.networks.structures import Structure
from sparsemtl.registry.parameters import Count, Default, Natural

Scope = Literal["global", "layer"]
Granularity = Literal["weight", "2:4", "channel", "head", "neuron"]
SINGLE: tuple[Granularity, ...] = ("weight", "2:4")
"""Granularities at which single weights are kept or dropped."""
Units = Mapping[str, Sequence[str]]
"""Parameter that names a layer -> all parameters whose first axis is that layer's output channels."""

Keep = float | Mapping[str, float]
"""Fraction that every task keeps, in (0, 1], or task -> its fraction; a task that is not named keeps everything."""

_SINGLE = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes whose values are ranked in single precision; all others are ranked in double precision."""
_SAMPLE = 2**17
"""Scores in the sample by which the search for the K-th highest is bounded."""
_CHUNK = 2**22
"""Scores among which ties are looked for at a time; an index of a tie has 8 bytes."""


_SPARSE = 0.2
"""Fraction below which layers are ranked separately: a global ranking then leaves single layers almost empty."""


def keep_of(keep: Keep, task: str) -> float:
    """Return the fraction that a task keeps."""
    return float(keep.get(task, 1.0)) if isinstance(keep, Mapping) else keep


def check_keep(keep: Keep, tasks: Iterable[str]) -> None:
    """Raise a ParameterError if `keep` names a task that is not there."""
    known = list(tasks)
    for task in keep if isinstance(keep, Mapping) else ():
        if task not in known:
            raise ParameterError(f"`keep`: {unknown_name('task', task, known)}")


def default_scope(keep: float) -> Scope:
    """Return how weights are ranked by default: per layer below a fraction of 0.2, else all together."""
    return "layer" if keep < _SPARSE - 1e-9 else "global"


class ChoiceOptions(CoverageOptions, total=False):
    """Options of the choice of masks: the weights to choose from, and the ranking of their scores."""

    scope: Annotated[
        Scope | None,
        Default(None),
        Doc(
            "Rank all weights together (`global`) or those of each layer separately (`layer`). By default `layer` for "
            "a task that keeps less than 0.2, else `global`."
        ),
    ]
    granularity: Annotated[
        Granularity,
        Default("weight"),
        Doc(
            "Single weights, two of four consecutive inputs (`2:4`), output channels with their bias and norm, "
            "attention heads, or feed-forward neurons."
        ),
    ]
    min_per_layer: Annotated[Count, Default(1), Doc("Weights or units that every layer keeps at least.")]
    min_per_unit: Annotated[
        Natural, Default(0), Doc("Incoming weights that every unit keeps at least, so that no unit dies.")
    ]


def select(
    scores: Mapping[str, Tensor], keep: float, *, scope: Scope = "global", min_per_layer: int = 1
) -> dict[str, Tensor]:
    """Keep exactly K = clamp(round(keep * P), 1, P) of the P weights, those of highest score.

    Ties go to the lowest index, parameters in the order given (FSMTL, Eq. 11).

    Args:
        scores: parameter name -> score per weight.
        keep: fraction in (0, 1].
        scope: `global` ranks all weights together, `layer` those of each parameter separately.
        min_per_layer: number of weights that every parameter keeps at least, or all if it has fewer. A global ranking
            takes them out of K first, so that no layer becomes empty; a layer's own ranking raises its K to them.

    Returns:
        parameter name -> bool tensor.

    Raises:
        NonFiniteScoreError: if a score is NaN; a study omits such a run and continues.
        ParameterError: if there is nothing to select from, or `keep` is out of range or too small for the floor.
    """
    if not scores:
        raise ParameterError(
            "nothing to select from: the model shares no weights, or no channels, that masks cover. A module of your "
            "own names its weights in `maskable_weights`."
        )
    if not 0 < keep <= 1:
        raise ParameterError(f"`keep` must be in (0, 1], got {keep}.")
    check_scores(scores)
    if scope == "layer":
        return {
            name: top_k(s.flatten(), max(budget(s.numel(), keep), min_per_layer)).view(s.shape)
            for name, s in scores.items()
        }
    sizes = [score.numel() for score in scores.values()]
    k = budget(sum(sizes), keep)
    if sum(min(min_per_layer, size) for size in sizes) > k:
        raise ParameterError(
            f"keep={keep} leaves {k} of {sum(sizes)} weights, fewer than min_per_layer={min_per_layer} in each of "
            f"{len(scores)} layers. Raise keep or lower min_per_layer."
        )
    masks = _largest_of_all([score.flatten() for score in scores.values()], k, min_per_layer)
    return {name: mask.view(score.shape) for (name, score), mask in zip(scores.items(), masks, strict=True)}


def select_channels(
    scores: Mapping[str, Tensor],
    units: Units,
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
        units: layer -> its parameters, as `channel_units` returns them.
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


def budget(size: int, keep: float) -> int:
    """Return K = clamp(round(keep * size), 1, size)."""
    return min(max(round(keep * size), 1), size)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of exactly the k largest entries of a vector; among equals the first."""
    return _largest([scores], k)[0]


def _largest_of_all(scores: Sequence[Tensor], k: int, floor: int) -> list[Tensor]:
    """Return bool masks of the k largest entries of some vectors, with at least `floor` of every vector."""
    masks = _largest(scores, k)
    if all(int(mask.count_nonzero()) >= min(floor, len(mask)) for mask in masks):
        return masks
    kept = [top_k(score, floor) for score in scores]
    left = k - sum(int(mask.count_nonzero()) for mask in kept)
    others = _largest([score[~mask] for score, mask in zip(scores, kept, strict=True)], left)
    for mask, other in zip(kept, others, strict=True):
        mask[~mask] = other
    return kept


def _largest(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Return bool masks of exactly the k largest entries of some vectors together; among equals the first."""
    if k <= 0 or k >= sum(map(len, scores)):
        return [torch.full_like(score, k > 0, dtype=torch.bool) for score in scores]
    dtype = torch.float32 if all(score.dtype in _SINGLE for score in scores) else torch.float64
    threshold = _kth_largest([score.detach().to(dtype) for score in scores], k)
    masks = [score.to(dtype) >= threshold for score in scores]
    surplus = sum(int(mask.count_nonzero()) for mask in masks) - k
    for score, mask in zip(reversed(scores), reversed(masks), strict=True):
        for values, kept in zip(reversed(score.split(_CHUNK)), reversed(mask.split(_CHUNK)), strict=True):
            if surplus > 0:
                dropped = (values.to(dtype) == threshold).nonzero().flatten()[-surplus:]
                kept[dropped] = False
                surplus -= len(dropped)
    return masks


def _kth_largest(scores: Sequence[Tensor], k: int) -> Tensor:
    """Return the k-th largest entry of some vectors together, a tensor without axes.

    On the CPU it is looked for between two bounds that a sample suggests (Floyd & Rivest 1975), so that almost all
    entries are compared but not copied.
    """
    if any(score.device.type != "cpu" for score in scores):
        joined = torch.cat(list(scores))
        return joined.kthvalue(len(joined) - k + 1).values
    arrays = [score.numpy() for score in scores]
    low, high = _bounds(arrays, k)
    above = sum(np.count_nonzero(array > high) for array in arrays)
    between = np.concatenate([array[(array >= low) & (array <= high)] for array in arrays])
    if not above < k <= above + len(between):
        above, between = 0, np.concatenate(arrays)
    at = above + len(between) - k
    between.partition(at)
    return torch.tensor(between[at])


def _bounds(arrays: Sequence[Any], k: int) -> tuple[Any, Any]:
    """Return values between which the k-th largest entry is, but for a sample that misleads: six deviations of it."""
    size = sum(map(len, arrays))
    sample = np.sort(np.concatenate([array[:: max(1, size // _SAMPLE)] for array in arrays]))[::-1]
    share = k / size
    rank, margin = share * len(sample), 6 * (share * (1 - share) * len(sample)) ** 0.5 + 1
    last = len(sample) - 1
    return sample[min(last, math.ceil(rank + margin))], sample[max(0, math.floor(rank - margin))]


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
