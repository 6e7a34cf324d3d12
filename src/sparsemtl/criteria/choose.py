"""Masks from a criterion: score, then keep the highest."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.fisher import Fisher
from sparsemtl.criteria.granularity import GranularityName, granularity_of
from sparsemtl.criteria.neurons import warn_of_dead_units
from sparsemtl.criteria.select import Keep, Scope, check_keep, default_scope, keep_of
from sparsemtl.errors import MaskError, MaskWarning
from sparsemtl.networks.coverage import CoverageOptions, coverage_options
from sparsemtl.networks.mask_description import left_out_of
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.patterns import Patterns
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.networks.shared_coverage import check_maskable
from sparsemtl.registry.parameters import Count, Default, Natural
from sparsemtl.tasks.batches import Loaders, check_readable
from sparsemtl.tasks.shards import owned


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
        GranularityName,
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


def choose_masks(
    criterion: Criterion,
    model: MultiTaskModel,
    loaders: Loaders,
    *,
    keep: Keep,
    previous: TaskMasks | None = None,
    method: str = "",
    process_group: Any = None,
    **selection: Unpack[ChoiceOptions],
) -> TaskMasks:
    """Return masks that keep, for every task, the `keep` weights of highest score; nothing else changes.

    Args:
        criterion: scores the weights. For units it must score biases and norms too (`mask_all=True`).
        model: the model.
        loaders: one loader for all tasks, or task -> loader.
        keep: fraction that every task keeps, in (0, 1]; or task -> its fraction, where tasks that are not named keep
            everything.
        previous: current masks; a task whose scores are all zero keeps its mask, with a warning.
        method: name of the method in the masks' header.
        process_group: group of `torch.distributed` whose processes call this, each with loaders of its own data. Scores
            are those of the data of all, so that every process gets the same masks.
        selection: `only` and `exclude` name the weights to choose from, as in `maskable_parameters`; where units are
            chosen, those of the named layers. The masks cover no others, which stay as they are for all tasks. `scope`
            ranks all weights together (`global`) or those of each layer separately (`layer`), by default per layer for
            tasks that keep less than 0.2;
            `granularity` is `weight`, `2:4` for two of every four consecutive inputs (`keep=0.5`), `channel` for whole
            output channels with their bias and norm, `head` for attention heads, or `neuron` for hidden units of
            feed-forward layers; `min_per_layer` is the number of weights or units that every layer keeps at least,
            `min_per_unit` that of incoming weights per unit.

    Warns:
        DeadUnitWarning: without `previous`, if a task keeps no incoming weight of more than half of a layer's units.

    Raises:
        MaskError: if a score is NaN, all of a task's are zero and there is no previous mask, or the model has no such
            units.
        ParameterError: if `keep` is out of range, too small for a floor or names no task, the model shares no weights,
            or a shared layer computes its weight from other parameters.
    """
    granularity, min_per_unit = granularity_of(selection.get("granularity", "weight")), selection.get("min_per_unit", 0)
    patterns = coverage_options(selection)
    mask_all = granularity.single and bool(criterion.scored.get("mask_all"))
    if previous is None:
        check_maskable(model, mask_all=mask_all, **patterns)
    check_keep(keep, model.tasks)
    granularity.check(keep, min_per_unit=min_per_unit)
    loaders = owned(loaders, process_group)
    if criterion.reads_data or not granularity.single:
        check_readable(loaders)
    with fork_rng():
        scores = dict(criterion.scores(model, loaders, list(model.tasks.values())))
        names, keep_highest = granularity.selection(
            model, loaders, patterns, mask_all=mask_all, min_per_unit=min_per_unit
        )
    masks: dict[str, Mapping[str, Tensor]] = {}
    for task in list(scores):
        score = scores.pop(task)  # one by one: the scores of all tasks are larger than the model
        if any(patterns.values()):
            score = _named(score, names, criterion)
        if score and not any(bool(tensor.any()) for tensor in score.values()):
            masks[task] = _unchanged(task, previous, score)
        else:
            own = keep_of(keep, task)
            scope = selection.get("scope") or default_scope(own)
            masks[task] = keep_highest(score, keep=own, scope=scope, min_per_layer=selection.get("min_per_layer", 1))
    covered = next(iter(masks.values()), {})
    chosen = TaskMasks(
        masks,
        model=type(model).__name__,
        method=method or type(criterion).__name__,
        left_out=left_out_of(model, covered, mask_all=mask_all, **patterns),
    )
    if previous is None and granularity.units_may_die:
        warn_of_dead_units(chosen, model)
    return chosen


def _named(scores: dict[str, Tensor], names: Iterable[str], criterion: Criterion) -> dict[str, Tensor]:
    """Return the scores of the named parameters, in their order."""
    wanted = set(names)
    if missing := sorted(wanted - set(scores)):
        raise MaskError(
            f"{criterion!r} has no score for {missing[0]!r}, from which masks are chosen. Make it with the same `only` "
            "and `exclude`; for units, with mask_all=True and without them."
        )
    return {name: score for name, score in scores.items() if name in wanted}


def fisher_masks(
    model: MultiTaskModel,
    loader: Loaders,
    keep: Keep = 0.3,
    *,
    only: Patterns | None = None,
    exclude: Patterns | None = None,
    scope: Scope | None = None,
    granularity: GranularityName = "weight",
    **options: Any,
) -> TaskMasks:
    """Return masks that keep, for every task, the weights of largest Fisher information (FSMTL Eq. 10 and 11).

    Args:
        model: the model; it is not changed.
        loader: yields (x, {task: labels}), or task -> loader of (x, labels).
        keep: fraction of the shared weights that every task keeps, in (0, 1]; or task -> its fraction.
        only: weights to choose from, by names, globs or classes of modules, as in `maskable_parameters`. The masks
            cover no others, which stay as they are for all tasks.
        exclude: weights that masks do not cover, named in the same way.
        scope: rank all weights together (`global`) or those of each layer separately (`layer`); by default per layer
            for tasks that keep less than 0.2.
        granularity: single weights, two of four inputs (`2:4`, with `keep=0.5`), output channels with their bias and
            norm, attention heads, or neurons.
        options: `min_per_layer`, the weights or units that every layer keeps at least, by default 1; `min_per_unit`,
            the incoming weights that every unit keeps at least, by default 0; `process_group`, a group of
            `torch.distributed` such as `group.WORLD` whose processes call this, each with a loader of its own data: all
            get the masks of all data; and parameters of `Fisher` (estimator, power, samples, ...).

    Examples:
        >>> masks = fisher_masks(model, loader, keep=0.3)                                 # doctest: +SKIP
        >>> masks = fisher_masks(model, loader, keep=0.3, only=nn.Conv2d, exclude="*.0")  # doctest: +SKIP
        >>> print(masks.overlap())                                                        # doctest: +SKIP
    """
    least, per_unit = options.pop("min_per_layer", 1), options.pop("min_per_unit", 0)
    process_group = options.pop("process_group", None)
    if granularity_of(granularity).single:
        criterion = Fisher(only=only, exclude=exclude, **options)
    else:
        criterion = Fisher(**{"mask_all": True, **options})
    return choose_masks(
        criterion,
        model,
        loader,
        keep=keep,
        method="fisher",
        only=only,
        exclude=exclude,
        scope=scope,
        granularity=granularity,
        process_group=process_group,
        min_per_layer=least,
        min_per_unit=per_unit,
    )


def _unchanged(task: str, previous: TaskMasks | None, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if previous is None:
        raise MaskError(
            f"task {task!r}: every score is zero, so that its weights cannot be ranked. Is its head trained?"
        )
    warnings.warn(f"task {task!r}: every score is zero; it keeps its mask.", MaskWarning, stacklevel=3)
    before = previous[task]  # which does not cover parameters that were frozen then
    return {n: before[n] if n in before else torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
