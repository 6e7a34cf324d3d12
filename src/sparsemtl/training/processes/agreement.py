"""Agreement of processes that train together: on random numbers at the start, and on weights after every epoch."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.errors import LabelError, ProcessError
from sparsemtl.networks.randomness import random_state, restore_random_state
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.tasks.batches import Loaders, by_owner, loader_generators
from sparsemtl.tasks.processes import Processes


def agree_on_randomness(processes: Processes, train: Loaders) -> None:
    """Give all processes the state of the first one's generators, and of those of its loaders.

    Raises:
        LabelError: if a loader yields a part of the data to each process.
    """
    if not processes.several:
        return
    from torch.utils.data.distributed import DistributedSampler

    for loader in by_owner(train).values():
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            raise LabelError(
                "a loader has a DistributedSampler, which gives each process a part of the data. Give the trainer "
                "loaders of all data: it gives every process its batches itself."
            )
    generators = loader_generators(train)
    state = processes.from_first(lambda: (random_state(), [generator.get_state() for generator in generators]))
    restore_random_state(state[0])
    for generator, own in zip(generators, state[1], strict=True):
        generator.set_state(own)


def check_equal(processes: Processes, model: nn.Module, networks: TaskNetworks) -> None:
    """Raise unless weights and networks are the same in all processes, to the last bit.

    Buffers that are no running statistics, such as a module's own counters, become those of the first process.

    Raises:
        ProcessError: naming the first tensor that differs.
    """
    if not processes.several:
        return
    processes.copy_from_first(model.buffers())
    tensors = {**dict(model.named_parameters()), **_flat("networks", networks.state_dict())}
    sums = processes.numbers([zlib.crc32(_bytes(tensor)) for tensor in tensors.values()])
    for name, column in zip(tensors, sums.T, strict=True):
        if bool((column != column[0]).any()):
            raise ProcessError(
                f"{name} differs between the processes, which must be the same. Does a module, an optimizer or a "
                "sharing method of your own draw random numbers, or read other data in each process?"
            )


def _flat(name: str, tree: Any) -> dict[str, Tensor]:
    """Return path -> tensor of a nest of mappings."""
    if isinstance(tree, Tensor):
        return {name: tree}
    parts = tree.items() if isinstance(tree, Mapping) else ()
    return {path: tensor for key, part in parts for path, tensor in _flat(f"{name}/{key}", part).items()}


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
