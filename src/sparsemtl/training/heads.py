"""Heads without a width yet, which need a batch before the optimizer is made."""

from __future__ import annotations

import torch
from torch.nn.parameter import UninitializedParameter

from sparsemtl.networks.model import MultiTaskModel, first_group
from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.tasks.batches import Loaders, preserve_loader_state


def materialize_heads(model: MultiTaskModel, train: Loaders) -> None:
    """Run the model on a batch if a parameter has no shape yet; preserve the order of the data."""
    if not any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        return
    with fork_rng(), preserve_loader_state(train), eval_mode(model), torch.no_grad():
        for task in model.tasks:
            model(first_group(model, train, task).x, tasks=(task,))
