"""Masks by a criterion: each task keeps its best weights, chosen before the epochs that a method names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from sparsemtl.criteria.batch_norm import for_dense_network
from sparsemtl.criteria.choose import choose_masks
from sparsemtl.criteria.criterion import Criterion, ScoredOptions
from sparsemtl.criteria.granularity import GranularityName, granularity_of
from sparsemtl.criteria.neurons import warn_of_dead_units
from sparsemtl.criteria.select import Keep, Scope, check_keep
from sparsemtl.errors import ParameterError
from sparsemtl.networks.coverage import CoverageOptions, coverage_options
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Count, Default, Fraction, Natural, Share
from sparsemtl.sharing.masking import (
    MASK_FIGURES,
    MaskOptions,
    full_networks,
    mask_metrics,
    mask_summary,
    masks_of,
    statistics_kind,
)
from sparsemtl.sharing.schedules import KeepSchedule, Ramp
from sparsemtl.tasks.batches import Loaders

KeepOption = Fraction | Mapping[str, Fraction]
"""Fraction in (0, 1] for all tasks, or task -> its fraction; a task that is not named keeps everything."""
_STABLE = 0.05
"""Fraction of every mask below which a change counts as none."""
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
        Scope | None,
        Default(None),
        Doc(
            "Rank the weights of all layers together (`global`) or of each `layer` apart. By default `layer` for a "
            "task that keeps less than 0.2 in the end, else `global`."
        ),
    ]
    granularity: Annotated[
        GranularityName,
        Default("weight"),
        Doc(
            "What is kept or dropped: single weights; two of every four consecutive inputs of an output (`2:4`, with "
            "`keep: 0.5`), for sparse tensor cores; output channels with their bias and norm; attention heads "
            "(their rows of query, key and value, their columns of the output), or neurons (hidden units of "
            "feed-forward layers)."
        ),
    ]
    min_per_layer: Annotated[Count, Default(1), Doc("Weights or units that every layer keeps at least.")]
    min_per_unit: Annotated[
        Natural, Default(0), Doc("Incoming weights that every unit keeps at least, so that no unit dies.")
    ]
    freeze_masks: Annotated[
        Fraction | Literal["stable"] | None,
        Default(None),
        Doc(
            "When masks are chosen for the last time: a share of the epochs, in (0, 1], or `stable`, once a choice "
            "changed less than 5 % of the mask of every task. By default masks are chosen until the end."
        ),
    ]
    mask_all: Annotated[
        bool,
        Default(False),
        Doc("Mask biases, norms, embeddings and positions as well; for units, always what belongs to them."),
    ]


class CriterionMasks:
    """Networks whose masks are chosen by a criterion; a sharing method decides by which one, and when.

    Args:
        method: name of the sharing method, for messages and files.
        keep: fraction of the maskable weights that each task keeps, in (0, 1], or task -> its fraction.
        options: options of the method.
        warmup: dense epochs at the beginning.

    Attributes:
        scored: options of the criterion, so that it scores what the masks cover.
    """

    def __init__(self, method: str, keep: Keep, options: SelectionOptions, *, warmup: int = 0) -> None:
        self.schedule = KeepSchedule(keep, options["target_sparsity"], Ramp(warmup, options["reach_at"]))
        self._granularity = granularity_of(options["granularity"])
        self._granularity.check(
            keep, target_sparsity=options["target_sparsity"], min_per_unit=options.get("min_per_unit", 0)
        )
        single = self._granularity.single  # units need the scores of everything that belongs to them
        self.mask_all = options["mask_all"] or not single
        patterns: CoverageOptions = coverage_options(options) if single else {}
        self.scored: ScoredOptions = {"mask_all": self.mask_all, **patterns}
        self._method = method
        self._options = options
        self._changed: dict[str, float] = {}
        self._choices = 0
        self._stable = False
        self._last_choice: int | None = None
        self._warned = False

    def begin_training(self, epochs: int) -> None:
        """Note the number of epochs, of which `freeze_masks` may be a share.

        Raises:
            ParameterError: if masks would be chosen for the last time before they are as sparse as they should be.
        """
        share = self._options.get("freeze_masks")
        if not isinstance(share, float | int):
            return
        ramp = self.schedule.ramp
        self._last_choice = max(ceil(share * epochs) - 1, ramp.warmup)
        if not ramp.is_reached(self._last_choice):
            raise ParameterError(
                f"`freeze_masks` of {share} ends the choice of masks after {self._last_choice + 1} of {epochs} epochs, "
                f"before `target_sparsity` is reached in epoch {ramp.end + 1}. Raise `freeze_masks` or lower "
                "`reach_at`."
            )

    def is_frozen(self, epoch: int) -> bool:
        """Return True if masks are not chosen any more before an epoch (counted from 0).

        Raises:
            ParameterError: if that is a share of the epochs, and their number is not known.
        """
        if isinstance(self._options.get("freeze_masks"), float | int) and self._last_choice is None:
            raise ParameterError(
                "`freeze_masks` is a share of the epochs, whose number is not known. In a loop of your own call "
                "`sharing.begin_training(epochs)` first."
            )
        return self._stable or (self._last_choice is not None and epoch > self._last_choice)

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks whose masks keep everything."""
        self._changed, self._choices, self._stable = {}, 0, False
        check_keep(self.schedule.keep, model.tasks)
        return full_networks(model, self._method, self._options, mask_all=self.mask_all)

    def choose(
        self, criterion: Criterion | None, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Return networks with masks chosen on the dense network, or None without a criterion or once frozen.

        Args:
            criterion: ranks the weights. Where statistics are per task, those of the dense network are recomputed.
            epoch: epoch that begins, counted from 0.
            model: the model.
            networks: the current networks.
            loaders: training data.
        """
        self._changed = {}
        if criterion is None or self.is_frozen(epoch):
            return None
        options, previous = self._options, masks_of(networks)
        masks = choose_masks(
            for_dense_network(criterion, model, statistics_kind(options)),
            model,
            loaders,
            keep=self.schedule.keep_at(epoch),
            scope=self.schedule.scope(options["scope"]),
            granularity=options["granularity"],
            min_per_layer=options["min_per_layer"],
            min_per_unit=options.get("min_per_unit", 0),
            **coverage_options(options),
            previous=previous,
            method=self._method,
        )
        self._changed = masks.changed(previous)
        self._choices += 1
        self._stable = self._settles(epoch)
        if self._granularity.units_may_die and options["mask_applies_to"] == "weights" and not self._warned:
            self._warned = warn_of_dead_units(masks, model)
        return networks.with_masks(masks)

    def _settles(self, epoch: int) -> bool:
        """Return True if the choice before an epoch is the last one, for it changed almost nothing."""
        if self._options.get("freeze_masks") != "stable" or self._choices < 2 or not self.schedule.is_reached(epoch):
            return False
        return max(self._changed.values()) < _STABLE

    def metrics(self, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density, overlap, and the fraction of each mask that the last choice changed."""
        yield from mask_metrics(networks)
        for task, changed in self._changed.items():
            yield task, "changed", changed

    def summary(self, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return mask_summary(networks)

    def state_dict(self) -> dict[str, Any]:
        """Return what an epoch that is resumed half-way still logs, and whether masks are frozen."""
        return {"changed": dict(self._changed), "choices": self._choices, "stable": self._stable}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._changed = dict(state["changed"])
        self._choices = int(state.get("choices", 0))  # files of earlier versions have none
        self._stable = bool(state.get("stable", False))
