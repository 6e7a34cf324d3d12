"""Run expert networks: together, as batched products, where their layers are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.backbones.activations import PLAIN_ACTIVATIONS
from sparsemtl.backbones.stages import ACTIVATIONS, sequence_of

_ELEMENTWISE = (*PLAIN_ACTIVATIONS, nn.Dropout)
"""Layers without parameters that apply one function to every number, so that one call serves all experts."""


class InputGroup(NamedTuple):
    """Experts and gates that read one input.

    Attributes:
        x: the input, (B, ...).
        experts: modules that read the input.
        gates: linear layers without bias that read the flattened input.
    """

    x: Any
    experts: Sequence[nn.Module]
    gates: Sequence[nn.Linear]


def run_side_by_side(groups: Sequence[InputGroup]) -> tuple[list[Tensor], list[Tensor]]:
    """Run all experts and gates.

    Experts that are stacks of equal linear layers and activations run together: the first layers and the gates of one
    input as one matrix product, each later layer as one batched product. All other experts run one after the other;
    so do experts with hooks, because a batched product calls no hook. Weights are read at the call, so that swapped
    tensors (`swap_tensors`) are used. Dropout draws other numbers than experts that run one after the other.

    Returns:
        features of the experts, stacked in tensors (n, B, ...): one of all experts that run together, else one per
            expert; and logits (B, slots) of every gate; both in the order of the groups.
    """
    layers = _alike(groups)
    return _together(groups, layers) if layers is not None else _apart(groups)


def _apart(groups: Sequence[InputGroup]) -> tuple[list[Tensor], list[Tensor]]:
    features = [expert(group.x).unsqueeze(0) for group in groups for expert in group.experts]
    logits = [gate(group.x.flatten(1)) for group in groups for gate in group.gates]
    return features, logits


def _together(groups: Sequence[InputGroup], layers: Sequence[Sequence[nn.Module]]) -> tuple[list[Tensor], list[Tensor]]:
    """Run experts whose n-th layers, `layers[n]`, are alike."""
    first, *later = layers
    activations = [column[0] for column in takewhile(lambda column: not isinstance(column[0], nn.Linear), later)]
    start, parts, logits = 0, [], []
    for group in groups:
        stop = start + len(group.experts)
        part, group_logits = _first_layer(group, first[start:stop], activations)
        start = stop
        parts += [part] if group.experts else []
        logits += group_logits
    features = parts[0] if len(parts) == 1 else torch.cat(parts)
    for column in later[len(activations) :]:
        features = _bmm(features, column) if isinstance(column[0], nn.Linear) else column[0](features)
    return [features], logits


def _first_layer(
    group: InputGroup, layers: Sequence[Any], activations: Sequence[nn.Module]
) -> tuple[Tensor, list[Tensor]]:
    """Run the experts' first layers and the gates of one input as one matrix product.

    Activations are applied before the split into experts: in this memory layout they are many times as fast.

    Returns:
        the experts' activations (n, B, width), and the logits of every gate.
    """
    readers = [*layers, *group.gates]
    weights = [reader.weight for reader in readers]
    sizes = [len(weight) for weight in weights[len(layers) :]]
    products = F.linear(group.x.flatten(1), torch.cat(weights), _biases(layers, sum(sizes)))
    width = len(weights[0]) if layers else 0
    outputs, *logits = products.split([len(layers) * width, *sizes], dim=1)
    if not layers:
        return outputs, logits
    if any(getattr(activation, "inplace", False) for activation in activations):
        outputs = outputs.clone()  # a part of a split must not be changed in place
    for activation in activations:
        outputs = activation(outputs)
    return outputs.unflatten(1, (len(layers), width)).transpose(0, 1), logits


def _biases(layers: Sequence[Any], others: int) -> Tensor | None:
    """Return the layers' biases, followed by zeros for the outputs of the gates."""
    if not layers or layers[0].bias is None:
        return None
    biases = [layer.bias for layer in layers]
    return torch.cat([*biases, biases[0].new_zeros(others)])


def _bmm(features: Tensor, layers: Sequence[Any]) -> Tensor:
    """Run n linear layers, each on its own features (n, B, width)."""
    weights = torch.stack([layer.weight for layer in layers]).transpose(1, 2)
    if layers[0].bias is None:
        return torch.bmm(features, weights)
    return torch.baddbmm(torch.stack([layer.bias for layer in layers]).unsqueeze(1), features, weights)


def _alike(groups: Sequence[InputGroup]) -> list[tuple[nn.Module, ...]] | None:
    """Return for every n the experts' n-th layers, if all experts can run together; else None."""
    stacks = [list(_layers(expert)) for group in groups for expert in group.experts]
    if len(stacks) < 2 or not all(map(_plain, groups)):
        return None
    folded = all(stack and type(stack[0]) is nn.Flatten for stack in stacks)
    if not folded and any(group.x.ndim != 2 for group in groups):
        return None
    stacks = [[layer for layer in stack if not _is_identity(layer)] for stack in stacks]
    if not stacks[0] or type(stacks[0][0]) is not nn.Linear or len({len(stack) for stack in stacks}) > 1:
        return None
    columns = list(zip(*stacks, strict=True))
    return columns if all(map(_batchable, columns)) else None


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a stack. A module with hooks, or one that is not a stack, counts as one layer."""
    sequence = sequence_of(module)
    if sequence is None or _hooked(module) or _hooked(sequence):
        yield module
    else:
        for child in sequence._modules.values():
            yield from _layers(child)


def _plain(group: InputGroup) -> bool:
    """Return True if the input can be flattened to vectors, and the gates are linear layers without hooks."""
    if not isinstance(group.x, Tensor) or group.x.ndim < 2:
        return False
    return all(type(gate) is nn.Linear and not _hooked(gate) for gate in group.gates)


def _is_identity(layer: nn.Module) -> bool:
    """Return True if a layer does not change vectors."""
    if _hooked(layer):
        return False
    return type(layer) is nn.Identity or (type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1))


def _batchable(layers: Sequence[Any]) -> bool:
    """Return True if the layers differ in their weights only."""
    first = layers[0]
    if any(type(layer) is not type(first) or _hooked(layer) for layer in layers):
        return False
    if type(first) is nn.Linear:
        shape, biased = first.weight.shape, first.bias is not None
        return all(layer.weight.shape == shape and (layer.bias is not None) == biased for layer in layers)
    settings = (first.training, first.extra_repr())
    return type(first) in _ELEMENTWISE and all((layer.training, layer.extra_repr()) == settings for layer in layers)


def _hooked(module: nn.Module) -> bool:
    """Return True if a call of the module does more than the `forward` of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def vector_widths(expert: nn.Module) -> tuple[int | None, int | None]:
    """Return the widths of the vectors that an expert reads and returns; (None, None) if it is no stack of layers."""
    layers = list(_layers(expert))
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    others = (*ACTIVATIONS, nn.Dropout, nn.Identity, nn.Flatten, nn.BatchNorm1d, nn.LayerNorm)
    if not linear or any(type(layer) not in (nn.Linear, *others) for layer in layers):
        return None, None
    return linear[0].in_features, linear[-1].out_features
