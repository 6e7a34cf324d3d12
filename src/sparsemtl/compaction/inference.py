"""Inference of an example that a module runs on, from the shapes of its layers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from sparsemtl.compaction.inputs import Inputs

_BATCH = 2
"""Samples of an example."""
_SIDES = (32, 64, 28, 224, 16, 8, 128, 96, 48, 12, 20, 24, 40, 56, 80, 112, 160, 192, 256, 299, 384, 512)
_LENGTHS = (32, 64, 128, 100, 256, 512, 1000, 1024, 16, 8, 7, 2048, 4096, 8000, 16000)
_DEPTHS = (16, 8, 32, 12, 24, 64)
_SMALL = range(1, 65)
"""Sizes of which all are tried, the usual ones before: layers behind may fit one size alone."""
_LAYERS = 6
"""Layers, the first ones, whose shapes are tried."""
_FEW = 5
"""Shapes of each layer that are tried before those of another."""


def inferred(module: nn.Module) -> tuple[Inputs | None, str]:
    """Return an example that a module runs on, inferred from the widths of its layers.

    Args:
        module: a module in eval mode, on its device.

    Returns:
        the example, None if there is none that is found; why there is none.
    """
    required = _required(module)
    if required is None or required > 3:
        return None, "its forward takes arguments that cannot be guessed"
    generator = torch.Generator().manual_seed(0)
    reason = "it has no layer that tells the shape of its inputs"
    for drawn in _choices(module, max(required, 1), generator):
        inputs = Inputs(drawn)
        try:
            inputs.call(module)
        except Exception as error:
            reason = f"none of the shapes that its layers suggest can be run ({_short(error)})"
        else:
            return inputs, ""
    return None, reason


def _short(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 120 else f"{line[:117]}..."


def _required(module: nn.Module) -> int | None:
    """Return the number of required arguments of a module's forward, None if they cannot be positional."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return None if not parameters or any(p.kind not in kinds for p in needed) else len(needed)


def _choices(module: nn.Module, arguments: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """Yield arguments to try, likely ones first: one shape for all, then one per argument."""
    for shape in _shapes(module):
        yield tuple(_filled(shape, module, generator) for _ in range(arguments))
    if arguments > 1:
        few = [shape for shape, _ in zip(_shapes(module), range(6), strict=False)]
        for shapes in itertools.product(few, repeat=arguments):
            yield tuple(_filled(shape, module, generator) for shape in shapes)


@dataclass(frozen=True)
class _Shape:
    size: tuple[int, ...]
    below: int | None = None
    """For whole numbers, what they are less than."""


def _filled(shape: _Shape, module: nn.Module, generator: torch.Generator) -> Tensor:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    if shape.below is not None:
        return torch.randint(0, shape.below, shape.size, generator=generator).to(like.device)
    return torch.randn(shape.size, generator=generator).to(like)


def _shapes(module: nn.Module) -> Iterator[_Shape]:
    """Yield shapes to try: a few of each of the first layers, then usual images, then all of each layer."""
    layers = list(itertools.islice((each for each in _in_order(module) if any(_read_by(each))), _LAYERS))
    few = itertools.chain.from_iterable(itertools.islice(_read_by(layer), _FEW) for layer in layers)
    images = (_Shape((_BATCH, channels, side, side)) for channels in (3, 1) for side in _SIDES[:4])
    yield from dict.fromkeys([*few, *images, *itertools.chain.from_iterable(map(_read_by, layers))])


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """Yield all modules, in the order of the graph if there is one, else in the order of registration."""
    if isinstance(module, fx.GraphModule):
        yield from (module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module")
    yield from module.modules()


def _read_by(layer: Any) -> Iterator[_Shape]:
    """Yield shapes of batches that a layer reads."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        below = layer.num_embeddings
        yield from (_Shape((_BATCH, length), below) for length in (7, 16, 1, 4, 32, 64, 128))
        yield _Shape((_BATCH,), below)
    elif isinstance(layer, nn.RNNBase):
        axes = (_BATCH, 7) if layer.batch_first else (7, _BATCH)
        yield _Shape((*axes, layer.input_size))
    elif isinstance(layer, nn.MultiheadAttention):
        yield _Shape((_BATCH, 7, layer.embed_dim))
    elif isinstance(layer, nn.LayerNorm):
        yield from (_Shape((_BATCH, *layer.normalized_shape)), _Shape((_BATCH, 7, *layer.normalized_shape)))
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        yield from _with_channels(layer.num_features, {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(layer), 0), 1)
    elif isinstance(layer, _ConvNd):
        yield from _with_channels(layer.in_channels, len(layer.kernel_size), max(layer.stride))
    else:
        for weight in layer._parameters.values():  # a weight is (outputs, inputs, *kernel) by custom
            if weight is not None and weight.ndim > 1:
                yield from _with_channels(weight.shape[1], weight.ndim - 2, 1)


def _with_channels(channels: int, axes: int, patch: int) -> Iterator[_Shape]:
    """Yield shapes of batches with some channels and axes of positions.

    Args:
        channels: number of channels.
        axes: axes of positions; none are vectors, alone or in sequences.
        patch: sizes that are multiples of it are tried as well.
    """
    if axes == 0:
        yield from (_Shape((_BATCH, channels)), _Shape((_BATCH, 7, channels)))
        return
    usual = {1: _LENGTHS, 2: _SIDES}.get(axes, _DEPTHS)
    further = [patch * count for count in range(2, 33)] if patch > 1 else []
    for size in dict.fromkeys([*usual, *(_SMALL if axes < 3 else ()), *further]):
        yield _Shape((_BATCH, channels, *[size] * axes))
