"""Random scores: the control for every criterion that claims to know better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparsemtl.criteria.criterion import Criterion, Scores
from sparsemtl.networks.model import maskable_parameters
from sparsemtl.registry.parameters import Natural, validated
from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import Loaders


class Random(Criterion):
    """Independent uniform scores: a task's mask is a uniform random subset (RS in FSMTL, AAAI 2024).

    Args:
        seed: same seed, same masks; tasks differ from each other.
        mask_all: also score biases and norms.
    """

    reads_data = False

    @validated
    def __init__(self, *, seed: Natural = 0, mask_all: bool = False) -> None:
        self.seed = seed
        self.mask_all = mask_all

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Draw scores; no data is read."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = maskable_parameters(model, mask_all=self.mask_all)
        return {
            task.name: {
                name: torch.rand(p.shape, generator=generator, dtype=torch.float64).to(p.device)
                for name, p in parameters.items()
            }
            for task in tasks
        }
