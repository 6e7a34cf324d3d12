"""Random scores: the baseline of every other criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from torch import nn
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.criterion import Criterion, ScoredOptions, Scores, scored_options
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.registry.parameters import Natural, validated
from sparsemtl.tasks.batches import Loaders

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class Random(Criterion):
    """Independent uniform scores: a task's mask is a uniform random subset (RS in FSMTL, AAAI 2024)."""

    reads_data = False

    @validated
    def __init__(
        self,
        *,
        seed: Annotated[Natural, Doc("Seed of the scores. Masks of different tasks differ.")] = 0,
        **scored: Unpack[ScoredOptions],
    ) -> None:
        self.seed = seed
        self.scored = scored_options(scored)

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Draw scores; no data is read."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = maskable_parameters(model, **self.scored)
        return {
            task.name: {
                name: torch.rand(p.shape, generator=generator, dtype=torch.float64).to(p.device)
                for name, p in parameters.items()
            }
            for task in tasks
        }
