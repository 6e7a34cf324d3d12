"""Importance of units: the squared change of a task's loss when the weights that read a unit are set to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsemtl.compaction.units import Units
from sparsemtl.errors import LabelError
from sparsemtl.networks.model import placement
from sparsemtl.networks.model_state import preserve_model_state
from sparsemtl.tasks.batches import Loaders, groups_for
from sparsemtl.tasks.shards import processes_of, sharded

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


def taylor_importance(model: nn.Module, units: Units, loaders: Loaders, task: Task, samples: int) -> Tensor:
    """Return the importance of every unit for a task (Molchanov et al., CVPR 2019, Eq. 8), (units,).

    It is the mean over batches of (sum of w * dL / dw)^2, L being the task's mean loss of a batch and w the weights of
    all layers that read the unit: to first order, the squared change of the loss without the unit. The model runs in
    eval mode and is left as it is.

    Args:
        model: a `MultiTaskModel`.
        units: its units.
        loaders: data.
        task: the task.
        samples: labelled samples to read, at least; whole batches are read.

    Raises:
        LabelError: if the task has no labelled sample.
    """
    weights = {layer.weight: model.get_parameter(layer.weight) for layer in units.readers()}
    device, dtype = placement(model)
    processes = processes_of(loaders)
    total, batches, seen = torch.zeros(units.count, dtype=torch.float64), 0, 0
    with preserve_model_state(model):
        for group in groups_for(sharded(loaders), task):
            change, count, weight = torch.zeros_like(total), 0, 0.0
            if group.tasks:
                group = group.to(device, dtype)
                target = task.labels(group.targets)
                labelled = task.labelled(target)
                count, weight = int(labelled.sum()), task.label_weight(target)
            if count:
                output = model(group.x, tasks=(task.name,))[task.name]
                loss = task.loss(output[labelled], target[labelled])
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                change = _change(units, weights, dict(zip(weights, gradients, strict=True)))
            if processes.several:  # the change of the mean loss over the batches of all
                totals = processes.numbers([count, weight]).sum(0).tolist()
                change *= weight / (totals[1] or 1.0)
                processes.add_up([change])
                count = int(totals[0])
            if not count:
                continue
            total += change.square()
            batches += 1
            seen += count
            if seen >= samples:
                break
    if not batches:
        raise LabelError(
            f"task {task.name!r} has no labelled sample to take gradients on. Leave the task out, or use data "
            "with labels of it."
        )
    return total / batches


@torch.no_grad()
def _change(units: Units, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> Tensor:
    """Return the sum of weight times gradient over all weights that read a unit, (units,), float64."""
    change = torch.zeros(units.count + 1, dtype=torch.float64)
    for layer in units.readers():
        gradient = gradients[layer.weight]
        if gradient is not None:
            terms = layer.columns(weights[layer.weight] * gradient).flatten(1).sum(1).double().cpu()
            change.index_add_(0, layer.reads % (units.count + 1), terms)  # the last entry gathers fixed channels
    return change[:-1]
