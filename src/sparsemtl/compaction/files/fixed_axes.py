"""Axes of inputs whose length torch.export fixes, although the network takes other lengths."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsemtl.compaction.files.graph_file import fixed
from sparsemtl.compaction.inputs import Inputs, Like
from sparsemtl.compaction.verification.comparison import outputs_of
from sparsemtl.errors import CompactionWarning


def is_dynamic(program: torch.export.ExportedProgram) -> bool:
    """Return whether the first axis of an input has any length."""
    return any(tensor.ndim and fixed(tensor.shape[0]) is None for _, tensor in _inputs_of(program))


def warn_of_fixed_axes(
    program: torch.export.ExportedProgram, network: nn.Module, inputs: Inputs, axes: Collection[int], path: Path
) -> None:
    """Warn of each axis that was to have any length, has one in the program, and has others in the network."""
    for axis in axes:
        found: dict[int, list[str]] = {}
        for name, tensor in _inputs_of(program):
            length = fixed(tensor.shape[axis]) if axis < tensor.ndim else None
            if length is not None:
                found.setdefault(length, []).append(name)
        for length, names in found.items():
            if any(_runs(network, other) for other in _others(inputs, axis, length)):
                warnings.warn(_message(network, names, axis, length, path), CompactionWarning, stacklevel=3)


def _inputs_of(program: torch.export.ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of each input."""
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.name in program.graph_signature.user_inputs else None
        if isinstance(value, Tensor):
            yield node.name, value


def _others(inputs: Inputs, axis: int, length: int) -> Iterator[Inputs]:
    """Yield random inputs with a longer or a shorter axis, first alone and then with all axes of the same length."""
    for other in (length + 1, length - 1) if length > 1 else (length + 1,):
        for everywhere in (False, True):
            yield _resized(inputs, axis, (length, other), everywhere=everywhere)


def _resized(inputs: Inputs, axis: int, lengths: tuple[int, int], *, everywhere: bool) -> Inputs:
    """Return random inputs with another length of an axis, or of all axes of that length but the batch."""
    generator = torch.Generator().manual_seed(0)
    old, new = lengths

    def drawn(tensor: Tensor) -> Tensor:
        changes = [
            size == old and (place == axis or (everywhere and place > 0)) for place, size in enumerate(tensor.shape)
        ]
        shape = [new if change else size for change, size in zip(changes, tensor.shape, strict=True)]
        return Like.of(tensor).drawn(generator, shape)

    return inputs.mapped(drawn)


def _runs(network: nn.Module, inputs: Inputs) -> bool:
    return not isinstance(outputs_of(network, inputs), Exception)


def _message(network: nn.Module, names: list[str], axis: int, length: int, path: Path) -> str:
    layers = [f"{name or 'the network'!r}" for name, each in network.named_modules() if isinstance(each, nn.RNNBase)]
    reason = f", since recurrent layers read it ({', '.join(layers)})" if axis and layers else ""
    return (
        f"{path.name} takes only length {length} on axis {axis} of {', '.join(names)}, and the network also others: "
        f"torch.export fixes the length{reason}. Write a file per length that you need (`example_inputs=...`), or keep "
        "the network with torch.save, which fixes none."
    )
