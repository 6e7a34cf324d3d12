"""Selection of exactly the K weights of highest score, over all layers or per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from sparsemtl.criteria.finite import check_scores
from sparsemtl.criteria.top_k import budget, largest_of_all, top_k
from sparsemtl.errors import ParameterError, unknown_name

Scope = Literal["global", "layer"]

Keep = float | Mapping[str, float]
"""Fraction that every task keeps, in (0, 1], or task -> its fraction; a task that is not named keeps everything."""

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
    masks = largest_of_all([score.flatten() for score in scores.values()], k, min_per_layer)
    return {name: mask.view(score.shape) for (name, score), mask in zip(scores.items(), masks, strict=True)}
