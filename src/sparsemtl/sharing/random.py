"""Random sparse sharing: the control that every choice of masks has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from typing_extensions import Doc, Unpack

from sparsemtl.criteria.random import Random
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import run_seed
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.registry.parameters import Natural, validated
from sparsemtl.sharing.criterion_masks import FIGURES, CriterionMasks, KeepOption, SelectionOptions
from sparsemtl.sharing.masking import statistics_kind
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.tasks.batches import Loaders

_SEED_STEP = 1_000_003
"""Difference of the seeds of two epochs: no run's seed at one epoch is that of another run at another epoch."""


class RandomSharing(Sharing):
    """RS: every task keeps a random subset of the shared weights (Zhang et al., FSMTL, AAAI 2024, Table 1).

    Number of weights and training are those of Fisher sharing; the masks are drawn at random, independently per task.
    """

    figures = FIGURES

    @validated
    def __init__(
        self,
        *,
        keep: Annotated[
            KeepOption,
            Doc(
                "Fraction of the maskable weights that each task keeps, in (0, 1]; or task -> its fraction, where "
                "tasks that are not named keep everything."
            ),
        ] = 0.3,
        seed: Annotated[
            Natural | None,
            Doc("Seed of the masks; by default that of the run, so that seeds of a study differ in their masks."),
        ] = None,
        update_every: Annotated[
            Natural, Doc("Epochs from one draw of masks to the next; 0 draws once, as in the paper.")
        ] = 0,
        **options: Unpack[SelectionOptions],
    ) -> None:
        self.keep = keep
        self.seed = seed
        self.update = options["update"]
        self.bn = statistics_kind(options)
        self.update_every = update_every
        self._masks = CriterionMasks(type(self).__name__, keep, options)

    def begin_training(self, epochs: int) -> None:
        """Note the number of epochs, of which `freeze_masks` may be a share."""
        self._masks.begin_training(epochs)

    def start(self, model: MultiTaskModel) -> TaskNetworks:
        """Return networks whose masks keep everything."""
        return self._masks.start(model)

    def begin_epoch(
        self, epoch: int, model: MultiTaskModel, networks: TaskNetworks, loaders: Loaders
    ) -> TaskNetworks | None:
        """Draw masks at the beginning and at every interval; while the density falls, from the same scores."""
        drawn = epoch - epoch % self.update_every if self.update_every > 0 else 0
        criterion = None
        if epoch == drawn or self._masks.schedule.falls_at(epoch):
            criterion = Random(seed=run_seed(self.seed) + drawn * _SEED_STEP, **self._masks.scored)
        return self._masks.choose(criterion, epoch, model, networks, loaders)

    def is_selectable(self, epoch: int) -> bool:
        """Return True; with a target, once it is reached."""
        return self._masks.schedule.is_reached(epoch)

    def metrics(self, model: MultiTaskModel, networks: TaskNetworks) -> Iterator[tuple[str, str, float]]:
        """Yield density, overlap and the fraction that changed."""
        return self._masks.metrics(networks)

    def summary(self, model: MultiTaskModel, networks: TaskNetworks) -> dict[str, Any]:
        """Return the density per task."""
        return self._masks.summary(networks)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the networks."""
        return self._masks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._masks.load_state_dict(state)
