"""State of a model, preserved while a criterion runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.randomness import fork_rng


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Enter eval mode with gradients in full precision; restore the model and the random generators afterwards.

    Everything that a forward pass may write is restored: buffers, and the embeddings that their norm limit rescales.
    Activation checkpointing by torch.utils.checkpoint is off meanwhile.
    """
    devices = {p.device.type for p in model.parameters()} | {"cpu"}
    with ExitStack() as stack:
        stack.enter_context(fork_rng())
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # it refuses backward in eval mode
        stack.enter_context(_layer_by_layer())
        stack.enter_context(_without_checkpointing())
        stack.enter_context(_restored(model))
        yield


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Keep torch's transformer layers from computing at once, without calling the layers that they are made of."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _PlainFunction:
    """Stands for `CheckpointFunction`, which makes a reentrant checkpoint: calls the function."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        """Return what the function returns."""
        return function(*args)


def _plain_generator(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stand for the generator around a checkpoint that is not reentrant: do nothing before the call and after it."""
    yield


_PLAIN = {"CheckpointFunction": _PlainFunction, "_checkpoint_without_reentrant_generator": _plain_generator}
"""Name in torch.utils.checkpoint -> what stands there while checkpointing is off."""
_CHECKPOINTING = {name: getattr(checkpoint, name) for name in _PLAIN if hasattr(checkpoint, name)}
_lock = threading.Lock()
_open = 0


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Keep `checkpoint` from calling functions again in the backward pass, where no hook and no replaced weight is.

    Modules hold the function `checkpoint` itself; it looks these names up at every call. A torch without them
    checkpoints as ever, and weights that are replaced refuse to be recomputed.
    """
    global _open
    with _lock:
        _open += 1
        for name in _CHECKPOINTING:
            setattr(checkpoint, name, _PLAIN[name])
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                for name, original in _CHECKPOINTING.items():
                    setattr(checkpoint, name, original)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    buffers = [(m, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    weights = [(weight, weight.detach().clone()) for weight in _rescaled(model)]
    try:
        yield
    finally:
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            _put_back(buffer, value)
        for weight, value in weights:
            _put_back(weight, value)


def _rescaled(model: nn.Module) -> list[Tensor]:
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
    ]


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    if not torch.equal(tensor, value):
        tensor.copy_(value)
