"""Tensors that all samples share, such as class tokens and looked-up positions, and how each sample gets its own.

A shared tensor has one gradient per batch. Spread over the batch by a view that repeats it, it has one per sample. The
view is the first of a few with which the model returns the same outputs for two samples. Whether its gradients are
right is measured afterwards (`per_sample`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.networks.swap import swap_tensors

SAMPLES = 2
"""Number of samples that spreads are tried on."""

_LARGEST = 2**20
"""Entries of the largest parameter to spread: its gradients exist for all samples of a batch at a time."""


@dataclass(frozen=True)
class Expansion:
    """View of a shared tensor in which every sample has one of its own.

    Args:
        ones: axes of length 1 between the axis of samples and the tensor's own axes; None: the tensor's first axis, of
            length 1, becomes the axis of samples.
    """

    ones: int | None = None

    def __call__(self, tensor: Tensor, batch: int) -> Tensor:
        """Return the view for a number of samples."""
        if self.ones is None:
            return tensor.expand(batch, *tensor.shape[1:])
        return tensor.expand(batch, *[1] * self.ones, *tensor.shape)


def spreadable(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that only modules of a user's own compute with, and that are small."""
    torchs = {
        id(parameter)
        for module in model.modules()
        if type(module).__module__.startswith("torch.nn.")
        for parameter in module._parameters.values()
    }
    return {name: p for name, p in parameters.items() if id(p) not in torchs and p.numel() <= _LARGEST}


def find_spreads(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    parameters: Iterable[str],
    layers: Mapping[nn.Module, Iterable[str]],
    runs: Callable[[], bool],
) -> dict[str, Expansion]:
    """Return parameter name -> a spread under which the model returns the same outputs.

    Args:
        model: the model.
        tensors: name -> tensor that the model computes with.
        parameters: names of the parameters to spread.
        layers: layer whose output to spread -> names of its parameters.
        runs: runs the model on `SAMPLES` samples, and returns whether it returned what it should.
    """
    found = {}
    for name in parameters:
        for spread in _forms(tensors[name]):
            with swap_tensors(model, {name: spread(tensors[name], SAMPLES)}):
                if succeeds(runs):
                    found[name] = spread
                    break
    for layer, names in layers.items():
        used: list[Expansion] = []

        def hook(module: nn.Module, _: Any, output: Tensor, used: list[Expansion] = used) -> Tensor:
            used.append(Expansion() if len(output) == 1 else Expansion(0))
            return used[-1](output, SAMPLES)

        handle = layer.register_forward_hook(hook, prepend=True)
        try:
            if succeeds(runs):
                found.update(dict.fromkeys(names, used[0]))
        finally:
            handle.remove()
    return found


def _forms(tensor: Tensor) -> list[Expansion]:
    """Return the spreads to try, the likeliest first."""
    first = [Expansion()] if tensor.shape[:1] == (1,) else []
    return first + [Expansion(ones) for ones in range(4)]


def succeeds(runs: Callable[[], bool]) -> bool:
    """Return what a function returns, run without gradients; False if it raises."""
    try:
        with torch.no_grad():
            return runs()
    except Exception:  # a model may refuse a tensor of another shape by any error
        return False
