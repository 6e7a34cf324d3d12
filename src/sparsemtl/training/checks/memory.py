"""Memory that training needs, in bytes: weights, gradients, optimizer, masks, what a backward pass reads again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class SavedTensors:
    """Bytes of the tensors that autograd keeps for the backward pass.

    Attributes:
        peak: largest number of bytes at one time; tensors of one storage count once.
    """

    def __init__(self, others: Iterable[Tensor]) -> None:
        self.peak = 0
        self._now = 0
        self._others = {_storage(tensor)[0] for tensor in others}
        self._uses: dict[Any, int] = {}
        self._lock = threading.RLock()  # another thread may run the backward pass

    def pack(self, tensor: Tensor) -> Any:
        """Add a tensor that autograd saves."""
        key, size = _storage(tensor)
        if key in self._others or not size:
            return _Saved(tensor, None, self)
        with self._lock:
            if not self._uses.get(key):
                self._now += size
                self.peak = max(self.peak, self._now)
            self._uses[key] = self._uses.get(key, 0) + 1
        return _Saved(tensor, (key, size), self)

    def drop(self, key: Any, size: int) -> None:
        """Subtract a tensor that autograd has freed."""
        with self._lock:
            self._uses[key] -= 1
            if not self._uses[key]:
                self._now -= size


class _Saved:
    """Holder of a tensor that autograd saves; it ends when autograd frees the tensor."""

    def __init__(self, tensor: Tensor, counted: Any, owner: SavedTensors) -> None:
        self.tensor = tensor
        self._counted = counted
        self._owner = owner

    def __del__(self) -> None:
        if self._counted is not None:
            self._owner.drop(*self._counted)


@contextmanager
def saved_tensors(model: nn.Module) -> Iterator[SavedTensors]:
    """Inside the context, count the tensors that autograd saves, without the model's own parameters and buffers."""
    saved = SavedTensors([*model.parameters(), *model.buffers()])
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        yield saved


def bytes_of(nest: Any) -> int:
    """Return the bytes of all tensors inside mappings, sequences and sets; tensors of one storage count once."""
    sizes: dict[Any, int] = {}
    waiting = [nest]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            key, size = _storage(part)
            sizes[key] = size
        elif isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, (list, tuple, set)):
            waiting += part
    return sum(sizes.values())


def _storage(tensor: Tensor) -> tuple[Any, int]:
    """Return what identifies the storage of a tensor, and its bytes; the tensor's own for kinds without a storage."""
    try:
        storage = tensor.untyped_storage()
        return (tensor.device, storage.data_ptr()), storage.nbytes()
    except (NotImplementedError, RuntimeError):  # sparse and other layouts
        return id(tensor), tensor.numel() * tensor.element_size()
