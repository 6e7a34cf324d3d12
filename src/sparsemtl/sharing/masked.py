"""What the methods have in common whose tasks keep a fraction of the shared weights, chosen by a criterion."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any

from sparsemtl.criteria.batch_norm import with_recomputed_batch_norm
from sparsemtl.criteria.choose import choose_masks
from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.select import Granularity, Scope
from sparsemtl.errors import ParameterError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.sharing.schedule import cubic
from sparsemtl.sharing.sharing import Statistics, Update
from sparsemtl.sharing.subnetwork import Semantics, SubnetworkSharing
from sparsemtl.tasks.batches import Loaders


class MaskedSharing(SubnetworkSharing):
    """Every task keeps a fraction of the shared weights, chosen by a criterion at moments that the method names.

    A method says in `criterion_for` which criterion chooses anew before an epoch; everything else is here. With
    `target_density` tasks do not keep the same fraction from the first: it falls by 1 - (1 - d) (1 - (1 - t)^3) from
    all to the target d, t going from 0 to 1 between `start` and `reach_at` (Zhu & Gupta 2017), with masks chosen anew
    before every epoch on the way.

    Args:
        keep: fraction of the maskable weights that every task keeps, in (0, 1].
        target_density: fraction kept in the end, in place of `keep`, reached step by step.
        reach_at: epochs by which the target is reached; no earlier epoch's model is ever chosen.
        mask_applies_to, update, strict, bn: see `SubnetworkSharing`.
        scope: rank all weights together (`global`) or each layer's apart (`layer`).
        granularity: single weights, or whole output channels with their bias and norm.
        min_per_layer: weights, or channels, that every layer keeps at least.
        mask_all: mask biases and norms as well; always so for channels.
    """

    #: Dense epochs before the first masks.
    start: int = 0

    def __init__(
        self,
        *,
        keep: float,
        target_density: float | None = None,
        reach_at: int | None = None,
        mask_applies_to: Semantics,
        update: Update | None,
        strict: bool,
        bn: Statistics | None,
        scope: Scope,
        granularity: Granularity,
        min_per_layer: int,
        mask_all: bool,
    ) -> None:
        super().__init__(
            mask_applies_to=mask_applies_to,
            update=update,
            strict=strict,
            bn=bn,
            mask_all=mask_all or granularity == "channel",
        )
        if (target_density is None) != (reach_at is None):
            raise ParameterError("`target_density` and `reach_at` go together: how much is kept, and by which epoch.")
        if reach_at is not None and reach_at <= self.start:
            raise ParameterError(f"`reach_at` must come after the warm-up of {self.start} epochs, got {reach_at}.")
        self.keep = keep
        self.target_density = target_density
        self.reach_at = reach_at
        self.scope = scope
        self.granularity = granularity
        self.min_per_layer = min_per_layer
        self._changed: dict[str, float] = {}

    @abc.abstractmethod
    def criterion_for(self, epoch: int) -> Criterion | None:
        """The criterion that chooses masks before this epoch (counted from 0), None to keep those in force."""

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Choose new masks if the method wants to; the order of the training data is not disturbed by it."""
        self._changed = {}
        criterion = self.criterion_for(epoch)
        if criterion is None:
            return
        chosen = self._choose(criterion, loaders, self.keep_at(epoch))
        self._changed = chosen.changed(self.masks)
        self.masks = chosen

    def falling(self, epoch: int) -> bool:
        """True if tasks keep less from this epoch on than before, on the way to `target_density`."""
        return self.reach_at is not None and self.start < epoch <= self.reach_at

    def keep_at(self, epoch: int) -> float:
        """Fraction that every task keeps in masks chosen before this epoch."""
        if self.target_density is None or self.reach_at is None:
            return self.keep
        way = min(max(epoch - self.start, 0) / (self.reach_at - self.start), 1.0)
        return 1 - (1 - self.target_density) * cubic(way)

    def is_selectable(self, epoch: int) -> bool:
        """After the warm-up, when there are masks; with a target, when it is reached."""
        return epoch >= (self.start if self.reach_at is None else self.reach_at)

    def _choose(self, criterion: Criterion, loaders: Loaders, keep: float) -> TaskMasks:
        """Masks by the criterion on the dense network, whose norms are estimated afresh for it."""
        return choose_masks(
            criterion if self.bn == "shared" else with_recomputed_batch_norm(criterion),
            self.model,
            loaders,
            keep=keep,
            scope=self.scope,
            granularity=self.granularity,
            min_per_layer=self.min_per_layer,
            previous=self.masks,
            method=type(self).__name__,
        )

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Also how much of every task's mask changed at the last renewal."""
        yield from super().metrics()
        for task, changed in self._changed.items():
            yield task, "changed", changed

    def state_dict(self) -> dict[str, Any]:
        """With how much of the masks changed at the last renewal, which an epoch resumed half-way still logs."""
        return {**super().state_dict(), "changed": dict(self._changed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        super().load_state_dict(state)
        self._changed = dict(state["changed"])
