"""Masks from a criterion: score, then keep the highest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from sparsemtl.criteria.channels import channel_units
from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.fisher import Fisher
from sparsemtl.criteria.select import Granularity, RankingOptions, Scope, select, select_channels, select_structures
from sparsemtl.errors import MaskError, MaskWarning
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel, check_maskable, first_group
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.structures import find_structures
from sparsemtl.tasks.batches import Loaders, check_readable


def choose_masks(
    criterion: Criterion,
    model: MultiTaskModel,
    loaders: Loaders,
    *,
    keep: float,
    previous: TaskMasks | None = None,
    method: str = "",
    **selection: Unpack[RankingOptions],
) -> TaskMasks:
    """Return masks that keep, for every task, the `keep` weights of highest score; nothing else changes.

    Args:
        criterion: scores the weights. For units it must score biases and norms too (`mask_all=True`).
        model: the model.
        loaders: one loader for all tasks, or task -> loader.
        keep: fraction that every task keeps, in (0, 1].
        previous: current masks; a task whose scores are all zero keeps its mask, with a warning.
        method: name of the method in the masks' header.
        selection: `scope` ranks all weights together (`global`) or those of each layer separately (`layer`);
            `granularity` is `weight`, `channel` for whole output channels with their bias and norm, `head` for
            attention heads, or `neuron` for hidden units of feed-forward layers; `min_per_layer` is the number of
            weights or units that every layer keeps at least.

    Raises:
        MaskError: if a score is NaN, all of a task's are zero and there is no previous mask, or the model has no such
            units.
        ParameterError: if `keep` is out of range or too small for the floor, the model shares no weights, or a shared
            layer computes its weight from other parameters.
    """
    if previous is None:
        check_maskable(model)
    granularity = selection.get("granularity", "weight")
    scope, least = selection.get("scope", "global"), selection.get("min_per_layer", 1)
    if criterion.reads_data or granularity != "weight":
        check_readable(loaders)
    with fork_rng():
        scores = dict(criterion.scores(model, loaders, list(model.tasks.values())))
        keep_highest = _selection(granularity, model, loaders)
    masks: dict[str, Mapping[str, Tensor]] = {}
    for task in list(scores):
        score = scores.pop(task)  # one by one: the scores of all tasks are larger than the model
        if score and not any(bool(tensor.any()) for tensor in score.values()):
            masks[task] = _unchanged(task, previous)
        else:
            masks[task] = keep_highest(score, keep=keep, scope=scope, min_per_layer=least)
    return TaskMasks(masks, model=type(model).__name__, method=method or type(criterion).__name__)


def fisher_masks(
    model: MultiTaskModel,
    loader: Loaders,
    keep: float = 0.3,
    *,
    scope: Scope = "global",
    granularity: Granularity = "weight",
    min_per_layer: int = 1,
    **estimation: Any,
) -> TaskMasks:
    """Return masks that keep, for every task, the weights of largest Fisher information (FSMTL Eq. 10 and 11).

    Args:
        model: the model; it is not changed.
        loader: yields (x, {task: labels}), or task -> loader of (x, labels).
        keep: fraction of the shared weights that every task keeps, in (0, 1].
        scope: rank all weights together (`global`) or those of each layer separately (`layer`).
        granularity: single weights, output channels with their bias and norm, attention heads, or neurons.
        min_per_layer: weights or units that every layer keeps at least.
        estimation: parameters of `Fisher` (estimator, power, samples, ...).

    Examples:
        >>> masks = fisher_masks(model, loader, keep=0.3)   # doctest: +SKIP
        >>> print(masks.overlap())                          # doctest: +SKIP
    """
    options = {"mask_all": True, **estimation} if granularity != "weight" else estimation
    return choose_masks(
        Fisher(**options),
        model,
        loader,
        keep=keep,
        method="fisher",
        scope=scope,
        granularity=granularity,
        min_per_layer=min_per_layer,
    )


def _unchanged(task: str, previous: TaskMasks | None) -> Mapping[str, Tensor]:
    if previous is None:
        raise MaskError(
            f"task {task!r}: every score is zero, so that its weights cannot be ranked. Is its head trained?"
        )
    warnings.warn(f"task {task!r}: every score is zero; it keeps its mask.", MaskWarning, stacklevel=3)
    return previous[task]


def _selection(granularity: Granularity, model: MultiTaskModel, loaders: Loaders) -> Callable[..., dict[str, Tensor]]:
    """Return the function of scores that keeps the highest weights or units."""
    if granularity == "weight":
        return select
    group = first_group(model, loaders)
    if granularity == "channel":
        return partial(select_channels, units=channel_units(model, group.x, group.tasks))
    return partial(select_structures, structures=find_structures(model, group.x, granularity, group.tasks))
