"""Attention of torch with each projection computed on its own, so that hooks reach its input and its gradient."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.errors import ParameterError

Project = Callable[[int, Tensor], Tensor]
"""Computes the query (0), key (1) or value (2) of inputs (N, S, E)."""
_FORWARD = inspect.signature(nn.MultiheadAttention.forward)


def is_attention(layer: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Return True for attention whose in-projections are the rows of one weight, and which adds nothing to them."""
    return (
        isinstance(layer, nn.MultiheadAttention)
        and type(layer).forward is nn.MultiheadAttention.forward
        and "forward" not in vars(layer)
        and layer._qkv_same_embed_dim
        and layer.bias_k is None
        and not layer.add_zero_attn
    )


def attend(
    layer: nn.MultiheadAttention,
    project: Project,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return what `layer.forward` returns in eval mode, with in-projections by `project`.

    The other arguments are those of `nn.MultiheadAttention.forward`.
    """
    given = _FORWARD.bind(layer, *args, **kwargs)
    given.apply_defaults()
    arguments = given.arguments  # `is_causal` is a hint about `attn_mask`, which torch requires
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    if query.ndim != 3:
        raise ParameterError(f"attention reads inputs of 3 axes here, got shape {tuple(query.shape)}.")
    inputs = [x if layer.batch_first else x.transpose(0, 1) for x in (query, key, value)]
    heads = (layer.num_heads, -1)
    q, k, v = (project(part, x).unflatten(-1, heads).transpose(1, 2) for part, x in enumerate(inputs))
    mask = _additive(arguments["attn_mask"], arguments["key_padding_mask"], q)
    weights = None
    if arguments["need_weights"]:
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        weights = (scores if mask is None else scores + mask).softmax(-1)
        read = weights @ v
    else:
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    output = layer.out_proj(read.transpose(1, 2).flatten(2))
    if weights is not None and arguments["average_attn_weights"]:
        weights = weights.mean(1)
    return output if layer.batch_first else output.transpose(0, 1), weights


def _additive(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Return both masks as one sum that broadcasts to (N, heads, L, S), in the dtype of `q` (N, heads, L, E)."""
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unflatten(0, q.shape[:2])
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask[:, None, None, :]
    total = None
    for mask in (attn_mask, key_padding_mask):
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
            total = mask if total is None else total + mask
    return total
