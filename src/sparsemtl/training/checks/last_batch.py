"""Last batches of a single sample, with which some batch norms cannot be trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from sparsemtl.data.base import BatchLoader
from sparsemtl.errors import ForwardError
from sparsemtl.networks.model import MultiTaskModel, placement
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.tasks.batches import Loaders, as_group, by_owner, preserve_loader_state
from sparsemtl.tasks.nests import to_device, to_dtype


def check_last_batches(model: MultiTaskModel, train: Loaders) -> None:
    """Run the model on one sample before training if the last batch of a loader has one.

    Raises:
        ForwardError: if a batch norm cannot be trained with it.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    for owner, loader in by_owner(train).items():
        if _last_size(loader) == 1:
            with fork_rng(), preserve_loader_state(train):
                x = as_group(_single(loader), model.tasks, owner).x
            _try(model, x, tuple(model.tasks) if owner is None else (owner,))


def _last_size(loader: Any) -> int | None:
    """Return the number of samples in the last batch of an epoch; None if unknown."""
    if isinstance(loader, DataLoader):
        sampler = loader.batch_sampler
        if type(sampler) is not BatchSampler or sampler.drop_last or isinstance(loader.dataset, IterableDataset):
            return None
        return _rest(len(sampler.sampler), sampler.batch_size)  # type: ignore[arg-type]
    if isinstance(loader, BatchLoader) and not loader.drop_last:
        return _rest(loader.dataset_size, loader.batch_size)
    return None


def _rest(count: int, size: int) -> int:
    return count % size or min(count, size)


def _single(loader: Any) -> Any:
    """Return a batch of one sample, as the loader itself makes it: no axis of a tensor need be that of the samples."""
    if isinstance(loader, DataLoader):
        return loader.collate_fn([loader.dataset[next(iter(loader.sampler))]])
    single = copy.copy(loader)
    single.dataset_size, single.batch_size, single.shuffle = 1, 1, False
    return next(iter(single))


def _try(model: MultiTaskModel, x: Any, tasks: tuple[str, ...]) -> None:
    """Run the model in train mode; restore its buffers and its mode."""
    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    device, dtype = placement(model)
    x = x if dtype is None else to_dtype(x, dtype)
    try:
        with fork_rng(), torch.no_grad():
            model.train()
            model(to_device(x, device), tasks=tasks)
    except ForwardError as error:
        raise error.at("the last batch of an epoch, which has one sample") from error.__cause__
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)
