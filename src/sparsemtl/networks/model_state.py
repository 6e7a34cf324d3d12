"""State of a model, preserved while a criterion runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from sparsemtl.networks.modes import eval_mode
from sparsemtl.networks.randomness import fork_rng


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Enter eval mode with gradients in full precision; restore the model and the random generators afterwards.

    Everything that a forward pass may write is restored: buffers, and the embeddings that their norm limit rescales.
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
