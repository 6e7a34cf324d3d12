"""Gradient: weights on which the task's mean loss leans most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsemtl.batches import Loaders, groups_for
from sparsemtl.criteria.criterion import Criterion, Scores
from sparsemtl.errors import LabelError
from sparsemtl.models import maskable_parameters
from sparsemtl.modes import evaluating
from sparsemtl.parameters import Count, validated
from sparsemtl.tasks import Task


class Gradient(Criterion):
    """|d mean loss / d weight|, or |weight * d mean loss / d weight| (SNIP, Lee et al. 2019).

    Args:
        samples: labelled samples that the mean is taken over, all if None.
        times_weight: multiply by the weight, which estimates the change of the loss when it is removed.
        mask_all: also score biases and norms.
    """

    @validated
    def __init__(self, *, samples: Count | None = 1024, times_weight: bool = False, mask_all: bool = False) -> None:
        self.samples = samples
        self.times_weight = times_weight
        self.mask_all = mask_all

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Average the loss's gradient over the samples, in eval mode."""
        parameters = maskable_parameters(model, mask_all=self.mask_all)
        with evaluating(model):
            return {task.name: self._of_task(model, loaders, task, parameters) for task in tasks}

    def _of_task(
        self, model: nn.Module, loaders: Loaders, task: Task, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        device = next(iter(parameters.values())).device
        seen = 0
        for group in groups_for(loaders, task):
            group = group.to(device)
            labels = group.targets[task.target]
            count = int(task.labelled(task.labels(labels)).sum())
            if not count:
                continue
            loss = task.loss(model(group.x, tasks=group.tasks)[task.name], labels) * count
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
            seen += count
            if self.samples is not None and seen >= self.samples:
                break
        if not seen:
            raise LabelError(f"task {task.name!r} has no labelled sample to take gradients on.")
        factors = parameters if self.times_weight else dict.fromkeys(parameters, 1.0)
        return {name: (total[name] / seen * factors[name]).abs().detach() for name in total}
