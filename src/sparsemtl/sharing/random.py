"""Random sparse sharing: the control that every choice of masks has to beat."""

from __future__ import annotations

import torch

from sparsemtl.criteria.criterion import Criterion
from sparsemtl.criteria.random import Random
from sparsemtl.criteria.select import Granularity, Scope
from sparsemtl.registry.parameters import Count, Fraction, Natural, validated
from sparsemtl.sharing.masked import MaskedSharing
from sparsemtl.sharing.sharing import Statistics, Update
from sparsemtl.sharing.subnetwork import Semantics


class RandomSharing(MaskedSharing):
    """RS: every task keeps a random subset of the shared weights (Zhang et al., FSMTL, AAAI 2024, Table 1).

    Same number of weights, same training as Fisher sharing, but masks drawn at random, independently for each task.

    Args:
        keep: fraction of the maskable weights that every task keeps, in (0, 1].
        seed: of the masks; the run's own seed by default, so that seeds of a study differ in their masks.
        resample_every: draw again every so many epochs; 0 keeps the first masks, as in the paper.
        target_density, reach_at, mask_applies_to, update, strict, bn, scope, granularity, min_per_layer, mask_all: see
            `MaskedSharing`.
    """

    @validated
    def __init__(
        self,
        *,
        keep: Fraction = 0.3,
        target_density: Fraction | None = None,
        reach_at: Count | None = None,
        seed: Natural | None = None,
        resample_every: Natural = 0,
        mask_applies_to: Semantics = "forward",
        update: Update | None = None,
        strict: bool = True,
        bn: Statistics | None = None,
        scope: Scope = "global",
        granularity: Granularity = "weight",
        min_per_layer: Count = 1,
        mask_all: bool = False,
    ) -> None:
        super().__init__(
            keep=keep,
            target_density=target_density,
            reach_at=reach_at,
            mask_applies_to=mask_applies_to,
            update=update,
            strict=strict,
            bn=bn,
            scope=scope,
            granularity=granularity,
            min_per_layer=min_per_layer,
            mask_all=mask_all,
        )
        self.seed = seed
        self.resample_every = resample_every

    def criterion_for(self, epoch: int) -> Criterion | None:
        """Random scores at the start, and again where asked; the same ones while the density falls."""
        drawn = epoch - epoch % self.resample_every if self.resample_every > 0 else 0
        if epoch != drawn and not self.falling(epoch):
            return None
        seed = torch.initial_seed() % 2**31 if self.seed is None else self.seed
        return Random(seed=seed + drawn * 1_000_003, mask_all=self.mask_all)  # no other run's seed at another epoch
