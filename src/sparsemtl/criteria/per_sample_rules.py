"""The layers whose per-sample gradients follow from what they read and the gradient of what they gave.

`RULES` is the registry: layer class -> rule. A layer without one is no error, its parameters take the general path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.criteria import per_sample_conv
from sparsemtl.criteria.per_sample_sums import PowerSum


@dataclass(frozen=True)
class Rule:
    """How one class of layers adds its per-sample gradients.

    Attributes:
        add: adds to totals, for (layer, input (N, ...), output gradient (N, ...), parameter -> total, sums).
        zeros: makes an empty total for a parameter called so, in the memory layout that `add` likes.
        handles: tells whether `add` knows a layer that is set like this, and reads an input like this.
    """

    add: Callable[[Any, Tensor, Tensor, Mapping[str, Tensor], PowerSum], None]
    zeros: Callable[[Tensor, torch.dtype], Tensor] = lambda tensor, dtype: torch.zeros_like(tensor, dtype=dtype)
    handles: Callable[[Any, Tensor], bool] = lambda layer, x: x.ndim > 1


def rule_for(layer: nn.Module) -> Rule | None:
    """The layer's rule. A subclass that computes something else has none."""
    for kind, rule in RULES.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return rule
    return None


def linear(layer: nn.Linear, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
    """W: sum over positions of dy x^T; b: of dy."""
    x, dy = (tensor.unsqueeze(1) if tensor.ndim == 2 else tensor.flatten(1, -2) for tensor in (x, dy))
    if "weight" in totals:
        sums.products(totals["weight"].unsqueeze(0), dy.transpose(1, 2).unsqueeze(1), x.unsqueeze(1))
    if "bias" in totals:
        sums.gradients(totals["bias"], dy.sum(1))


def convolution(
    layer: nn.modules.conv._ConvNd, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum
) -> None:
    """W: see `per_sample_conv`; b: sum over positions of dy."""
    if "weight" in totals:
        per_sample_conv.add_weight(layer, x, dy, totals["weight"], sums)
    if "bias" in totals:
        sums.gradients(totals["bias"], dy.flatten(2).sum(2))


def embedding(layer: nn.Embedding, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
    """Row v: sum of dy over the positions that hold v; the padding row has no gradient."""
    if "weight" not in totals:
        return
    rows = layer.num_embeddings
    sample = torch.arange(len(x), device=x.device).repeat_interleave(x[0].numel())
    places, place = (sample * rows + x.flatten()).unique(return_inverse=True)
    gradients = dy.new_zeros(len(places), dy.shape[-1]).index_add_(0, place, dy.flatten(0, -2))
    row = places % rows
    if layer.padding_idx is not None:
        gradients[row == layer.padding_idx] = 0
    total = totals["weight"]
    total.index_add_(0, row, sums.powered(gradients.to(total.dtype)))


def _norm(
    normalised: Callable[[Any, Tensor], Tensor], over_positions: Callable[[Tensor, int], Tensor]
) -> Callable[[Any, Tensor, Tensor, Mapping[str, Tensor], PowerSum], None]:
    """Scale: sum over positions of dy * normalised(x); shift: of dy."""

    def add(layer: Any, x: Tensor, dy: Tensor, totals: Mapping[str, Tensor], sums: PowerSum) -> None:
        for name, total in totals.items():
            gradient = dy * normalised(layer, x) if name == "weight" else dy
            sums.gradients(total, over_positions(gradient, total.ndim))

    return add


def _channels_first(tensor: Tensor, axes: int) -> Tensor:
    """Sum (N, C, *positions) to (N, C)."""
    return tensor.flatten(2).sum(2) if tensor.ndim > 2 else tensor


def _channels_last(tensor: Tensor, axes: int) -> Tensor:
    """Sum (N, *positions, *features) to (N, *features), which are the last `axes`."""
    return tensor.flatten(1, -axes - 1).sum(1) if tensor.ndim > axes + 1 else tensor


def _batch_normalised(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)


def _group_normalised(layer: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, layer.num_groups, eps=layer.eps)


def _layer_normalised(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, eps=layer.eps)


def _rms_normalised(layer: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, layer.normalized_shape, eps=layer.eps)


def _batched(layer: nn.modules.conv._ConvNd, x: Tensor) -> bool:
    """Without a batch axis, (C, *size), the channels would pass for samples."""
    return x.ndim == layer.weight.ndim


def _plain(layer: nn.Embedding, x: Tensor) -> bool:
    """Scaling by frequency mixes the samples of a batch, and a norm limit changes the weights in the forward."""
    return layer.max_norm is None and not layer.scale_grad_by_freq


CONVOLUTION = Rule(convolution, per_sample_conv.zeros, _batched)
BATCH_NORM = Rule(_norm(_batch_normalised, _channels_first))

RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(linear),
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.Conv3d: CONVOLUTION,
    nn.ConvTranspose1d: CONVOLUTION,
    nn.ConvTranspose2d: CONVOLUTION,
    nn.ConvTranspose3d: CONVOLUTION,
    nn.Embedding: Rule(embedding, handles=_plain),
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.BatchNorm3d: BATCH_NORM,
    nn.SyncBatchNorm: BATCH_NORM,
    nn.GroupNorm: Rule(_norm(_group_normalised, _channels_first)),
    nn.LayerNorm: Rule(_norm(_layer_normalised, _channels_last)),
}
if hasattr(nn, "RMSNorm"):  # torch 2.4
    RULES[nn.RMSNorm] = Rule(_norm(_rms_normalised, _channels_last))
