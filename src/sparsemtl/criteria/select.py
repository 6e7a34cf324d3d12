"""Selection of exactly the K highest scores, with ties broken by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Literal, TypedDict

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.errors import MaskError, NonFiniteScoreError, ParameterError
from sparsemtl.registry.parameters import Count, Default

Scope = Literal["global", "layer"]
Granularity = Literal["weight", "channel", "head", "neuron"]
Units = Mapping[str, Sequence[str]]
"""Parameter that names a layer -> all parameters whose first axis is that layer's output channels."""


class RankingOptions(TypedDict, total=False):
    """Options of the ranking of scores."""

    scope: Annotated[
        Scope,
        Default("global"),
        Doc("Rank all weights together (`global`) or those of each layer separately (`layer`)."),
    ]
    granularity: Annotated[
        Granularity,
        Default("weight"),
        Doc("Single weights, output channels with their bias and norm, attention heads, or feed-forward neurons."),
    ]
    min_per_layer: Annotated[Count, Default(1), Doc("Weights or units that every layer keeps at least.")]


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
    for name, score in scores.items():
        if bool(score.isnan().any()):
            wrong = int(score.isnan().sum())
            raise NonFiniteScoreError(f"parameter {name!r}: {wrong} scores are NaN. Did training diverge?")
    if scope == "layer":
        return {
            name: top_k(s.flatten(), max(budget(s.numel(), keep), min_per_layer)).view(s.shape)
            for name, s in scores.items()
        }
    flat = torch.cat([score.flatten().double() for score in scores.values()])
    floors = _floors(scores, min_per_layer)
    k = budget(len(flat), keep)
    if int(floors.sum()) > k:
        raise ParameterError(
            f"keep={keep} leaves {k} of {len(flat)} weights, fewer than min_per_layer={min_per_layer} in each of "
            f"{len(scores)} layers. Raise keep or lower min_per_layer."
        )
    kept = floors.clone()
    kept[~floors] = top_k(flat[~floors], k - int(floors.sum()))
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


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
    masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    for layer, names in units.items():
        for name in names:
            masks[name] = chosen[layer].view(-1, *[1] * (scores[name].ndim - 1)).expand(scores[name].shape).clone()
    return masks


def budget(size: int, keep: float) -> int:
    """Return K = clamp(round(keep * size), 1, size)."""
    return min(max(round(keep * size), 1), size)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of exactly the k largest entries of a vector; among equals the first."""
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k >= len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - k + 1).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    kept[ties[: k - int(kept.sum())]] = True
    return kept


def _floors(scores: Mapping[str, Tensor], count: int) -> Tensor:
    """Return a bool mask of the `count` highest scores of every parameter, over all parameters in one vector."""
    return torch.cat([top_k(score.flatten().double(), min(count, score.numel())) for score in scores.values()])
