"""Gradient: weights on which the task's mean loss leans most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsemtl.criteria.criterion import Criterion, Scores
from sparsemtl.criteria.model_state import preserve_model_state
from sparsemtl.criteria.per_sample_powers import BatchPowers, wide
from sparsemtl.criteria.per_sample_sums import PowerSum
from sparsemtl.errors import LabelError
from sparsemtl.networks.masks import unwrapped
from sparsemtl.networks.model import maskable_parameters, placement
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.tasks import Task
from sparsemtl.tasks.batches import Group, Loaders, groups_for


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
        """Average the loss's gradient over the samples, in eval mode; the model is left as it is.

        Raises:
            LabelError: if a task has no labelled sample.
        """
        model = unwrapped(model)
        parameters = maskable_parameters(model, mask_all=self.mask_all)
        with preserve_model_state(model):
            return {task.name: self._of_task(model, loaders, task, parameters) for task in tasks}

    def _of_task(
        self, model: nn.Module, loaders: Loaders, task: Task, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(p, dtype=wide(p.dtype)) for name, p in parameters.items()}
        device, dtype = placement(model)
        seen, labels = 0, 0.0
        for group in groups_for(loaders, task):
            group = group.to(device, dtype)
            target = task.labels(group.targets)
            counts = task.labelled(target)
            if self.samples is not None:
                counts &= counts.cumsum(0) <= self.samples - seen
            n = int(counts.sum())
            if n:
                share = _known_share(task, target[counts])  # the loss is a mean over known labels, not over samples
                for name, gradient in _gradients(model, parameters, task, group, counts).items():
                    total[name] += share * gradient
                labels += share
            seen += n
            if seen == self.samples:
                break
        if not seen:
            raise LabelError(f"task {task.name!r} has no labelled sample to take gradients on.")
        factors = parameters if self.times_weight else dict.fromkeys(parameters, 1.0)
        return {name: (total[name] / labels * factors[name]).abs().detach() for name in total}


def _known_share(task: Task, target: Tensor) -> float:
    """Number of known labels, in labels of one whole sample: the number of samples where everything is known."""
    known = task.known(target)
    return int(known.sum()) / known[0].numel()


def _gradients(
    model: nn.Module, parameters: Mapping[str, Tensor], task: Task, group: Group, counts: Tensor
) -> dict[str, Tensor]:
    """Gradient of the mean loss of the samples that count, for the parameters that it depends on."""
    batch = BatchPowers(model, parameters, PowerSum("abs", 0))
    found = batch.forward(group.x, (task.name,))[task.name]
    output = found.to(wide(found.dtype)).requires_grad_()
    loss = task.loss(output[counts], task.labels(group.targets)[counts])
    (cotangent,) = torch.autograd.grad(loss, output)
    return batch.gradients({task.name: cotangent.to(found.dtype)})
