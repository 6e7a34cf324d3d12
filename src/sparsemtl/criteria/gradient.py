"""Gradient: the weights to which a task's mean loss is most sensitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.criteria.criterion import Criterion, ScoredOptions, Scores, scored_options
from sparsemtl.criteria.gradient_powers import BatchPowers, zeros_like
from sparsemtl.criteria.power_sum import PowerSum, wide
from sparsemtl.errors import LabelError
from sparsemtl.networks.model import placement
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.networks.shared_coverage import maskable_parameters
from sparsemtl.networks.swap import unwrapped
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.tasks.batches import Group, Loaders, groups_for
from sparsemtl.tasks.shards import processes_of, sharded

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class Gradient(Criterion):
    """Absolute value of d mean loss / d weight, or of weight * d mean loss / d weight (SNIP, Lee et al. 2019)."""

    @validated
    def __init__(
        self,
        *,
        samples: Annotated[Count | None, Doc("Labelled samples that the mean is taken over; all if None.")] = 1024,
        times_weight: Annotated[
            bool, Doc("Multiply by the weight, which estimates the change of the loss when the weight is removed.")
        ] = False,
        **scored: Unpack[ScoredOptions],
    ) -> None:
        self.samples = samples
        self.times_weight = times_weight
        self.scored = scored_options(scored)

    def scores(self, model: nn.Module, loaders: Loaders, tasks: Sequence[Task]) -> Scores:
        """Average the loss's gradient over the samples, in eval mode; the model is left as it is.

        Raises:
            LabelError: if a task has no labelled sample.
        """
        model = unwrapped(model)
        parameters = maskable_parameters(model, **self.scored)
        with preserve_model_state(model):
            return {task.name: self._of_task(model, loaders, task, parameters) for task in tasks}

    def _of_task(
        self, model: nn.Module, loaders: Loaders, task: Task, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        total = zeros_like(parameters)
        device, dtype = placement(model)
        seen, labels = 0, 0.0
        processes = processes_of(loaders)
        for group in groups_for(sharded(loaders), task):
            left = None if self.samples is None else self.samples - seen
            group, target, counts = _labelled(group.to(device, dtype), task)
            (n,), (taken,) = processes.limited([int(counts.sum())], [left])
            if n:
                counts &= counts.cumsum(0) <= n
                share = _known_share(task, target[counts])  # the loss is a mean over known labels, not over samples
                for name, gradient in _gradients(model, parameters, task, group, counts).items():
                    total[name] += share * gradient
                labels += share
            seen += taken
            if seen == self.samples:
                break
        processes.add_up(total.values())
        labels = float(processes.numbers([labels]).sum()) if processes.several else labels
        if not seen:
            raise LabelError(
                f"task {task.name!r} has no labelled sample to take gradients on. Leave the task out, or use data "
                "with labels of it."
            )
        factors = parameters if self.times_weight else dict.fromkeys(parameters, 1.0)
        return {name: (total[name] / labels * factors[name]).abs().detach() for name in total}


def _labelled(group: Group, task: Task) -> tuple[Group, Tensor, Tensor]:
    """Return a group, its labels, and which samples have one; none where a process has no batch."""
    if not group.tasks:
        return group, torch.empty(0), torch.empty(0, dtype=torch.bool)
    target = task.labels(group.targets)
    return group, target, task.labelled(target)


def _known_share(task: Task, target: Tensor) -> float:
    """Return the number of known labels over the labels per sample: the number of samples if all labels are known."""
    known = task.known(target)
    return int(known.sum()) / known[0].numel()


def _gradients(
    model: nn.Module, parameters: Mapping[str, Tensor], task: Task, group: Group, counts: Tensor
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss of the samples that count, for the parameters that the loss depends on."""
    batch = BatchPowers(model, parameters, PowerSum("abs", 0))
    found = batch.forward(group.x, (task.name,))[task.name]
    output = found.to(wide(found.dtype)).requires_grad_()
    loss = task.loss(output[counts], task.labels(group.targets)[counts])
    (cotangent,) = torch.autograd.grad(loss, output)
    return batch.gradients({task.name: cotangent.to(found.dtype)})
