"""Masks by a criterion: each task keeps its best weights, chosen before the epochs that a method names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from typing_extensions import Doc

from sparsemtl.criteria.batch_norm import with_recomputed_batch_norm
from sparsemtl.criteria.choose import choose_masks
from sparsemtl.criteria.criterion import Criterion, ScoredOptions
from sparsemtl.criteria.select import Granularity, Scope
from sparsemtl.networks.coverage import CoverageOptions, coverage_options
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.norms import statistics_for
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Count, Default, Share
from sparsemtl.sharing.masking import (
    MASK_FIGURES,
    MaskOptions,
    full_networks,
    mask_metrics,
    mask_summary,
    masks_of,
    statistics_kind,
)
from sparsemtl.sharing.schedules import KeepSchedule
from sparsemtl.tasks.batches import Loaders

FIGURES = (*MASK_FIGURES, Figure("changed", "Changed by the last choice", "fraction of the weights kept before"))
"""Figures of methods that choose masks by a criterion."""


class SelectionOptions(MaskOptions, total=False):
    """Options of methods that choose masks by a criterion."""

    target_sparsity: Annotated[
        Share | None,
        Default(None),
        Doc(
            "Fraction of the maskable weights that each task drops at the end, in [0, 1), in place of `keep`. It rises "
            "from 0 at the end of the warm-up as 1 - (1 - t)^3 (Zhu & Gupta 2017), with new masks before each epoch."
        ),
    ]
    reach_at: Annotated[
        Count | None,
        Default(None),
        Doc("Epochs by which `target_sparsity` is reached; the model of an earlier epoch is never selected."),
    ]
    scope: Annotated[
        Scope, Default("global"), Doc("Rank the weights of all layers together (`global`) or of each `layer` apart.")
    ]
    granularity: Annotated[
        Granularity,
        Default("weight"),
        Doc(
            "What is kept or dropped: single weights, output channels with their bias and norm, attention heads "
            "(their rows of query, key and value, their columns of the output), or neurons (hidden units of "
            "feed-forward layers)."
        ),
    ]
    min_per_layer: Annotated[Count, Default(1), Doc("Weights or units that every layer keeps at least.")]
    mask_all: Annotated[
        bool,
        Default(False),
        Doc("Mask biases, norms, embeddings and positions as well; for units, always what belongs to them."),
    ]


class CriterionMasks:
    """Networks whose masks are chosen by a criterion; a sharing method says which criterion, and when.

    Args:
        method: name of the sharing method, for messages and files.
        keep: fraction of the maskable weights that each task keeps, in (0, 1].
        options: options of the method.
        warmup: dense epochs at the beginning.

    Attributes:
        scored: options of the criterion, so that it scores what the masks cover.
    """

    def __init__(self, method: str, keep: float, options: SelectionOptions, *, warmup: int = 0) -> None:
        self.schedule = KeepSchedule(keep, warmup, options["target_sparsity"], options["reach_at"])
        self.mask_all = options["mask_all"] or options["granularity"] != "weight"
        by_weight = options["granularity"] == "weight"  # units need the scores of everything that belongs to them
        patterns: CoverageOptions = coverage_options(options) if by_weight else {}
        self.scored: ScoredOptions = {"mask_all": self.mask_all, **patterns}
        self._method = method
        self._options = options
        self._changed: dict[str, float] = {}

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks whose masks keep everything."""
        self._changed = {}
        return full_networks(model, self._method, self._options, mask_all=self.mask_all)

    def choose(
        self, criterion: Criterion | None, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Return networks with masks chosen on the dense network, or None without a criterion.

        Args:
            criterion: ranks the weights. Where statistics are per task, those of the dense network are recomputed.
            epoch: epoch that begins, counted from 0.
            model: the model.
            networks: the current networks.
            loaders: training data.
        """
        self._changed = {}
        if criterion is None:
            return None
        options, previous = self._options, masks_of(networks)
        masks = choose_masks(
            criterion if _are_shared(model, options) else with_recomputed_batch_norm(criterion),
            model,
            loaders,
            keep=self.schedule.keep_at(epoch),
            scope=options["scope"],
            granularity=options["granularity"],
            min_per_layer=options["min_per_layer"],
            **coverage_options(options),
            previous=previous,
            method=self._method,
        )
        self._changed = masks.changed(previous)
        return networks.with_masks(masks)

    def metrics(self, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density, overlap, and the fraction of each mask that the last choice changed."""
        yield from mask_metrics(networks)
        for task, changed in self._changed.items():
            yield task, "changed", changed

    def summary(self, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return mask_summary(networks)

    def state_dict(self) -> dict[str, Any]:
        """Return what an epoch that is resumed half-way still logs."""
        return {"changed": dict(self._changed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._changed = dict(state["changed"])


def _are_shared(model: MultiTaskModel, options: SelectionOptions) -> bool:
    return statistics_for(model, statistics_kind(options)) == "shared"
