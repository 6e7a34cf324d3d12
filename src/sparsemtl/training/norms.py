"""Batch-norm statistics of the networks that are validated, chosen and saved: those of their weights."""

from __future__ import annotations

from torch import nn

from sparsemtl.networks.norms import pool_statistics, statistics_for
from sparsemtl.networks.recomputed_norms import BATCHES, recompute_norms
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training.options import TrainingOptions
from sparsemtl.training.steps.step import TrainingStep


def renew_norms(step: TrainingStep, train: Loaders, options: TrainingOptions, module: nn.Module) -> None:
    """Recompute the statistics before validation, as `norm_batches` says.

    The model's own statistics become those of all tasks' data, where the tasks compute with the model's own weights.

    Args:
        step: the training step.
        train: training data.
        options: options of the run.
        module: callable in place of the model.
    """
    model, networks = step.model, step.networks
    batches = options["norm_batches"]
    if batches is None:
        batches = BATCHES if statistics_for(model, step.sharing.bn) == "per_task" else 0
    if batches:
        recompute_norms(model, train, networks=networks, batches=batches, module=module)
    if networks.same_weights:
        pool_statistics(model, {task: network.own_tensors for task, network in networks.items()})
