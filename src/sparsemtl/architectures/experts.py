"""Networks side by side: made from one, and run as one where they are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import takewhile
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsemtl.backbones.activations import PLAIN_ACTIVATIONS
from sparsemtl.backbones.stages import ACTIVATIONS, sequence_of
from sparsemtl.errors import ParameterError

ELEMENTWISE = (*PLAIN_ACTIVATIONS, nn.Dropout)
"""Layers without parameters that treat every number alike, so that one call serves all experts."""

Maker = nn.Module | Callable[[], nn.Module]
"""What experts are made from: a module, of which they are copies, or a function that makes one."""


class Reading(NamedTuple):
    """An input, and who reads it.

    Attributes:
        x: the input, (B, ...); gates read it flattened.
        experts: read it as it is.
        gates: linear layers without bias.
    """

    x: Any
    experts: Sequence[nn.Module]
    gates: Sequence[nn.Linear]


def run_side_by_side(readings: Sequence[Reading]) -> tuple[list[Tensor], list[Tensor]]:
    """Run all experts and gates.

    Experts that are stacks of equal linear layers and activations are run together: all that read one input as one
    product of matrices, later layers as one batched product. Other experts run one after the other, and so do those
    with hooks, which want to be called. Weights are read when this is called, so that masked ones that stand in for
    them (see `swap_tensors`) are those that count. Dropout drops other numbers than in one expert after the other.

    Returns:
        every expert's features (B, ...) and every gate's logits (B, slots), in the order of the readings.
    """
    layers = _alike(readings)
    return _together(readings, layers) if layers is not None else _apart(readings)


def _apart(readings: Sequence[Reading]) -> tuple[list[Tensor], list[Tensor]]:
    features = [expert(reading.x) for reading in readings for expert in reading.experts]
    logits = [gate(reading.x.flatten(1)) for reading in readings for gate in reading.gates]
    return features, logits


def _together(readings: Sequence[Reading], layers: Sequence[Sequence[nn.Module]]) -> tuple[list[Tensor], list[Tensor]]:
    """Run experts whose n-th layers, `layers[n]`, are alike."""
    first, *later = layers
    activations = [column[0] for column in takewhile(lambda column: not isinstance(column[0], nn.Linear), later)]
    start, parts, logits = 0, [], []
    for reading in readings:
        stop = start + len(reading.experts)
        part, answers = _first_layer(reading, first[start:stop], activations)
        start = stop
        parts += [part] if reading.experts else []
        logits += answers
    features = parts[0] if len(parts) == 1 else torch.cat(parts)
    for column in later[len(activations) :]:
        features = _bmm(features, column) if isinstance(column[0], nn.Linear) else column[0](features)
    return list(features.unbind()), logits


def _first_layer(
    reading: Reading, layers: Sequence[Any], activations: Sequence[nn.Module]
) -> tuple[Tensor, list[Tensor]]:
    """All that read one input, in one product of matrices.

    Activations come before the experts are put apart: in this layout they are many times as fast.

    Returns:
        the experts' activations (n, B, width), and every gate's logits.
    """
    readers = [*layers, *reading.gates]
    weights = [reader.weight for reader in readers]
    sizes = [len(weight) for weight in weights[len(layers) :]]
    products = F.linear(reading.x.flatten(1), torch.cat(weights), _biases(layers, sum(sizes)))
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
    """The layers' biases, and zeros for as many outputs of gates."""
    if not layers or layers[0].bias is None:
        return None
    biases = [layer.bias for layer in layers]
    return torch.cat([*biases, biases[0].new_zeros(others)])


def _bmm(features: Tensor, layers: Sequence[Any]) -> Tensor:
    """Linear layers, each on its own features (n, B, width)."""
    weights = torch.stack([layer.weight for layer in layers]).transpose(1, 2)
    if layers[0].bias is None:
        return torch.bmm(features, weights)
    return torch.baddbmm(torch.stack([layer.bias for layer in layers]).unsqueeze(1), features, weights)


# ---- which experts are alike ---------------------------------------------------------------------------------------


def _alike(readings: Sequence[Reading]) -> list[tuple[nn.Module, ...]] | None:
    """The experts' n-th layers side by side, for every n, if all experts can run as one; else None."""
    stacks = [list(_layers(expert)) for reading in readings for expert in reading.experts]
    if len(stacks) < 2 or not all(map(_plain, readings)):
        return None
    folded = all(stack and type(stack[0]) is nn.Flatten for stack in stacks)
    if not folded and any(reading.x.ndim != 2 for reading in readings):
        return None
    stacks = [[layer for layer in stack if not _idle(layer)] for stack in stacks]
    if not stacks[0] or type(stacks[0][0]) is not nn.Linear or len({len(stack) for stack in stacks}) > 1:
        return None
    columns = list(zip(*stacks, strict=True))
    return columns if all(map(_same, columns)) else None


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a stack; a module that somebody listens to, or that is no stack, is one of its own."""
    sequence = sequence_of(module)
    if sequence is None or _watched(module) or _watched(sequence):
        yield module
    else:
        for child in sequence._modules.values():
            yield from _layers(child)


def _plain(reading: Reading) -> bool:
    """Whether the input is a batch of vectors, or can be folded to one, and its gates are linear layers."""
    if not isinstance(reading.x, Tensor) or reading.x.ndim < 2:
        return False
    return all(type(gate) is nn.Linear and not _watched(gate) for gate in reading.gates)


def _idle(layer: nn.Module) -> bool:
    """Whether a layer does nothing to vectors."""
    if _watched(layer):
        return False
    return type(layer) is nn.Identity or (type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1))


def _same(layers: Sequence[Any]) -> bool:
    """Whether one call can do the work of all of these layers, but for their weights."""
    first = layers[0]
    if any(type(layer) is not type(first) or _watched(layer) for layer in layers):
        return False
    if type(first) is nn.Linear:
        shape, biased = first.weight.shape, first.bias is not None
        return all(layer.weight.shape == shape and (layer.bias is not None) == biased for layer in layers)
    settings = (first.training, first.extra_repr())
    return type(first) in ELEMENTWISE and all((layer.training, layer.extra_repr()) == settings for layer in layers)


def _watched(module: nn.Module) -> bool:
    """Whether a call of the module is more than its class's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def vector_widths(expert: nn.Module) -> tuple[int | None, int | None]:
    """Width of the vectors that an expert reads and of those that it gives, if it is a stack of linear layers."""
    layers = list(_layers(expert))
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    others = (*ACTIVATIONS, nn.Dropout, nn.Identity, nn.Flatten, nn.BatchNorm1d, nn.LayerNorm)
    if not linear or any(type(layer) not in (nn.Linear, *others) for layer in layers):
        return None, None
    return linear[0].in_features, linear[-1].out_features


# ---- how experts are made ------------------------------------------------------------------------------------------


def copies(encoder: Maker, *, fresh: bool) -> Iterator[nn.Module]:
    """As many networks as are asked for.

    Args:
        encoder: a module, whose copies these are, or a function that makes one.
        fresh: draw the weights of every copy but the first anew.

    Raises:
        ParameterError: if a module does not say how its weights are drawn.
    """
    if not isinstance(encoder, nn.Module):
        while True:
            yield encoder()
    yield deepcopy(encoder)
    while True:
        yield redrawn(deepcopy(encoder)) if fresh else deepcopy(encoder)


def redrawn(module: nn.Module) -> nn.Module:
    """Draw a module's parameters anew, by the `reset_parameters` of the topmost modules that have it.

    Raises:
        ParameterError: if a module has parameters and no `reset_parameters`.
    """
    if parametrize.is_parametrized(module):
        raise ParameterError(_CANNOT_DRAW.format(f"{type(module).__name__}, whose weights are parametrized,"))
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return module
    if any(parameter is not None for parameter in module._parameters.values()):
        raise ParameterError(_CANNOT_DRAW.format(f"{type(module).__name__}, which has no `reset_parameters`,"))
    for child in module.children():
        redrawn(child)
    return module


_CANNOT_DRAW = (
    "the weights of {} cannot be drawn anew for another copy. Give a function that makes a network in place of the "
    "network, or start from equal copies with `fresh=False`."
)
