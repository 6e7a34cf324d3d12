"""Parts of methods that mask shared weights: their options, networks that keep everything, and their figures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import torch
from typing_extensions import Doc

from sparsemtl.errors import MaskError, MaskWarning
from sparsemtl.networks.coverage import CoverageOptions, coverage_options
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.mask_description import left_out_of
from sparsemtl.networks.masks import Mask, TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import Statistics, own_statistics
from sparsemtl.networks.shared_coverage import check_maskable, maskable_parameters, shared_coverage
from sparsemtl.networks.task_networks import MaskTarget, TaskNetworks
from sparsemtl.registry.parameters import Default
from sparsemtl.sharing.sharing import DenseOptions, Update


class StrictOptions(TypedDict, total=False):
    """Options of all methods that freeze what masks leave out."""

    strict: Annotated[
        bool,
        Default(True),
        Doc(
            "No step moves a weight that none of its tasks keeps, whatever momentum and weight decay the optimizer has."
        ),
    ]


class CommonMaskOptions(CoverageOptions, StrictOptions, DenseOptions, total=False):
    """Options of methods whose tasks have one mask together, and therefore one network."""


class TaskMaskOptions(CoverageOptions, StrictOptions, total=False):
    """Options of methods whose tasks have masks of their own."""

    update: Annotated[
        Update | None,
        Default(None),
        Doc(
            "How a batch becomes optimizer steps: `joint` (for masked gradients), `average`, `alternate` or "
            "`random_one`; see `dense`. By default `alternate`, or `average` where each task has its own data or the "
            "balancer combines the tasks."
        ),
    ]
    bn: Annotated[
        Statistics | None,
        Default(None),
        Doc(
            "Batch-norm statistics: one set for all tasks, one set per task, or those of the batch itself. By default "
            "`per_task` for masked weights, and as for `dense` for masked gradients."
        ),
    ]


class MaskOptions(TaskMaskOptions, total=False):
    """Options of methods whose masks act on weights or on gradients."""

    mask_applies_to: Annotated[
        MaskTarget,
        Default("weights"),
        Doc(
            "`weights` masks the weights that a task computes with (FSMTL, Eq. 3); `gradients` masks only the gradient "
            "of the task (Eq. 4), and all tasks compute with the dense weights."
        ),
    ]


MASK_FIGURES = (
    Figure("density", "Density", "fraction of the maskable weights that the task keeps"),
    Figure("overlap", "Overlap", "mean Jaccard index of the masks of two tasks, in [0, 1]", per_task=False),
)
"""Figures of `mask_metrics`."""


def full_masks(model: MultiTaskModel, method: str, options: CoverageOptions, *, mask_all: bool = False) -> TaskMasks:
    """Return masks that keep everything.

    Args:
        model: the model.
        method: name of the sharing method, for messages and files.
        options: options of the method.
        mask_all: mask biases and norms as well.

    Raises:
        MaskError: if the model shares no weights that masks cover.
        ParameterError: if `only` or `exclude` names nothing, or a shared layer computes its weight from other
            parameters.
    """
    patterns = coverage_options(options)
    check_maskable(model, mask_all=mask_all, **patterns)
    parameters = maskable_parameters(model, mask_all=mask_all, **patterns)
    if not parameters:
        reasons = shared_coverage(model, mask_all=mask_all, **patterns).reasons
        left = "".join(f" {name} is {why}." for name, why in list(reasons.items())[:3])
        raise MaskError(
            f"{method} masks the weights that tasks share, and {type(model).__name__} shares none.{left} "
            "Use DenseSharing with it; a module of your own names its weights in `maskable_weights`."
        )
    left_out = left_out_of(model, parameters, mask_all=mask_all, **patterns)
    return TaskMasks.ones(parameters, model.tasks, model=type(model).__name__, method=method, left_out=left_out)


def full_networks(model: MultiTaskModel, method: str, options: MaskOptions, *, mask_all: bool = False) -> TaskNetworks:
    """Return networks whose masks keep everything; see `full_masks`."""
    return TaskNetworks.of_masks(
        full_masks(model, method, options, mask_all=mask_all),
        own_statistics(model, statistics_kind(options)),
        applies_to=options["mask_applies_to"],
        strict=options["strict"],
    )


def with_common_mask(networks: TaskNetworks, mask: Mask) -> TaskNetworks:
    """Return networks in which one mask is that of all tasks."""
    before = masks_of(networks)
    return networks.with_masks(before.replaced(dict.fromkeys(before, mask)))


def used_masks(model: MultiTaskModel, masks: TaskMasks) -> TaskMasks:
    """Return masks without the weights of modules that a task does not use."""
    users = model.parameter_tasks()
    return masks.replaced(
        {
            task: {name: mask if task in users[name] else torch.zeros_like(mask) for name, mask in own.items()}
            for task, own in masks.items()
        }
    )


def warn_of_dead_layers(masks: TaskMasks, before: TaskMasks, *, common: bool = False) -> None:
    """Warn of every layer of which a task keeps nothing any more, and kept something before.

    Args:
        masks: the masks in force.
        before: the masks before them.
        common: all tasks have one mask, so that one warning is enough.
    """
    for task in masks.tasks[:1] if common else masks.tasks:
        for name, mask in masks[task].items():
            if bool(before[task][name].any()) and not bool(mask.any()):
                whose = "all tasks" if common else f"task {task!r}"
                warnings.warn(
                    f"{masks.method}: no weight of {name!r} is left in the network of {whose}, so that nothing passes "
                    "through this layer. Keep more weights, or leave the layer alone with `exclude`.",
                    MaskWarning,
                    stacklevel=3,
                )


def statistics_kind(options: MaskOptions) -> Statistics | None:
    """Return whose batch-norm statistics the tasks use; None for what data and architecture need."""
    return options["bn"] or ("per_task" if options["mask_applies_to"] == "weights" else None)


def masks_of(networks: TaskNetworks) -> TaskMasks:
    """Return the masks of networks that were made of masks."""
    masks = networks.masks
    if masks is None:
        raise MaskError("these networks have no masks; they were made by another sharing method.")
    return masks


def mask_metrics(networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
    """Yield the density per task, and the tasks' mean overlap."""
    masks = masks_of(networks)
    for task in masks:
        yield task, "density", masks.density(task)
    if len(masks) > 1:
        jaccard = masks.overlap().jaccard
        others = len(jaccard) * (len(jaccard) - 1)
        yield "", "overlap", float(jaccard.sum() - jaccard.trace()) / others


def mask_summary(networks: TaskNetworks) -> dict[str, Any]:
    """Return the density per task."""
    masks = masks_of(networks)
    return {"density": {task: masks.density(task) for task in masks}}
