"""Layers that are opened before or while they are recorded, so that rules see their weights and heads.

transformers' `Conv1D` becomes a linear layer. torch's attention, in layers of any class that call it, becomes linear
layers around a product of queries and keys. `unflatten` becomes a view.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.compaction.graph.operations import torch_class
from sparsemtl.networks.roles import is_transposed_linear

OPENED: tuple[type[nn.Module], ...] = (
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.Unflatten,
)
"""Classes of torch's that are looked into."""


def is_opened(module: Any) -> bool:
    """Return whether a module of torch's is looked into."""
    return torch_class(module) in OPENED


def unflattened(x: Tensor, dim: int, sizes: Any) -> Tensor:
    """Compute `x.unflatten(dim, sizes)` as a view."""
    axis = dim % x.ndim
    return x.view(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def stays_whole(module: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an encoder or decoder runs other code for other values of a mask."""
    kind = torch_class(module)
    if kind is nn.TransformerEncoder:
        mask, _, causal = _given(args, kwargs, ("mask", "src_key_padding_mask", "is_causal"))
        return mask is not None and causal is None
    if kind is nn.TransformerDecoder:
        mask, causal = kwargs.get("tgt_mask", args[2] if len(args) > 2 else None), kwargs.get("tgt_is_causal")
        return mask is not None and causal is None
    return False


def pads(module: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an encoder takes torch's path of nested tensors, where its masks are aligned to the left."""
    if torch_class(module) is not nn.TransformerEncoder or module.use_nested_tensor is not True:
        return False
    mask, padding, causal = _given(args, kwargs, ("mask", "src_key_padding_mask", "is_causal"))
    return mask is None and padding is not None and not causal and getattr(module, "mask_check", True) is True


def padded_encoder(
    module: Any, src: Tensor, mask: None = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
) -> Tensor:
    """Compute what `nn.TransformerEncoder` does with nested tensors: zeros at padded positions, before its last norm.

    If any sequence has padding in front of a position that is not padded, torch takes its other path, without zeros.

    Args:
        module: the encoder.
        src: (B, positions, width).
        mask, is_causal: not given.
        src_key_padding_mask: (B, positions), True or a number other than zero at padded positions.
    """
    hidden = src
    for layer in module.layers:
        hidden = layer(hidden, src_key_padding_mask=src_key_padding_mask)
    padded = src_key_padding_mask if src_key_padding_mask.dtype == torch.bool else src_key_padding_mask != 0
    aligned = torch.logical_not((padded[:, :-1] & padded[:, 1:].logical_not()).any())
    hidden = hidden.masked_fill((padded & aligned).unsqueeze(-1), 0.0)
    return hidden if module.norm is None else module.norm(hidden)


def _given(args: Any, kwargs: Any, names: tuple[str, ...]) -> list[Any]:
    """Return the arguments behind the first one, None for those that were not given."""
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in enumerate(names, 1)]


@torch.no_grad()
def open_transposed(model: nn.Module, leaf_modules: Collection[str]) -> None:
    """Replace layers whose weight is (inputs, outputs) by linear layers with the same outputs."""
    made: dict[nn.Module, nn.Linear] = {}
    for name, module in list(model.named_modules()):
        for own, child in list(module.named_children()):
            inside = f"{name}.{own}".lstrip(".")
            whole = any(inside == leaf or inside.startswith(f"{leaf}.") for leaf in leaf_modules)
            if is_transposed_linear(child) and not (whole or child._forward_hooks or child._forward_pre_hooks):
                if child not in made:
                    made[child] = _linear(child)
                module._modules[own] = made[child]


def _linear(layer: Any) -> nn.Linear:
    inputs, outputs = layer.weight.shape
    made = nn.Linear(inputs, outputs, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight.t().contiguous(), requires_grad=layer.weight.requires_grad)
    made.bias = layer.bias
    return made.train(layer.training)


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


def attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Compute what `torch.nn.functional.multi_head_attention_forward` does, with the heads on an axis of their own.

    Args:
        args, kwargs: arguments of torch's function. Query, key and value are (positions, B, width), or have no B.
    """
    bound = _ATTENTION.bind(*args, **kwargs)
    bound.apply_defaults()
    given = SimpleNamespace(**bound.arguments)
    query, key, value = given.query, given.key, given.value
    batched, padding = query.ndim == 3, given.key_padding_mask
    if not batched:
        same = query is key and key is value
        query = query.unsqueeze(1)
        key, value = (query, query) if same else (key.unsqueeze(1), value.unsqueeze(1))
        padding = padding if padding is None else padding.unsqueeze(0)
    mask = _merged(given.attn_mask, padding, query, given.num_heads)
    causal = given.is_causal and padding is None and not given.need_weights
    queries, keys, values = _projected(query, key, value, given)
    queries, keys, values, mask = _heads(queries, keys, values, mask, given)
    if given.need_weights:
        scale = math.sqrt(1.0 / (given.embed_dim_to_check // given.num_heads))
        made, weights = _weighted(queries * scale, keys, values, mask)
        weights = weights.mean(dim=1) if given.average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        weights = None
        made = F.scaled_dot_product_attention(queries, keys, values, None if causal else mask, is_causal=causal)
    made = made.permute(2, 0, 1, 3)
    output = F.linear(made.reshape(made.size(0), made.size(1), -1), given.out_proj_weight, given.out_proj_bias)
    return output if batched else output.squeeze(1), weights


def _heads(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, given: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return queries, keys and values, (B, heads, positions, size), and the mask, with the tokens that torch adds."""
    more, size = int(given.add_zero_attn), given.embed_dim_to_check // given.num_heads
    if given.bias_k is not None and given.bias_v is not None:
        keys, values = _with_token(keys, given.bias_k), _with_token(values, given.bias_v)
        more += 1
    mask = mask if mask is None or not more else F.pad(mask, (0, more))
    queries, keys, values = (
        part.view(part.size(0), part.size(1), given.num_heads, size).permute(1, 2, 0, 3)
        for part in (queries, keys, values)
    )
    if given.add_zero_attn:
        keys, values = (F.pad(part, (0, 0, 0, 1)) for part in (keys, values))
    return queries, keys, values, mask


def _weighted(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mixed values, and the weights of the mixture, (B, heads, queries, keys)."""
    scores = torch.matmul(queries, keys.transpose(-2, -1))
    weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
    return torch.matmul(weights, values), weights


def _with_token(part: Tensor, token: Tensor) -> Tensor:
    """Return keys or values (positions, B, width) with one more position, which is the same for all samples."""
    return torch.cat([part, token.expand(1, part.size(1), -1)])


def _projected(query: Tensor, key: Tensor, value: Tensor, given: Any) -> tuple[Tensor, ...]:
    """Return queries, keys and values, (positions, B, width)."""
    weight, bias = given.in_proj_weight, given.in_proj_bias
    if weight is not None and query is key and key is value:
        return F.linear(query, weight, bias).chunk(3, dim=-1)
    separate = given.q_proj_weight, given.k_proj_weight, given.v_proj_weight
    weights = separate if weight is None else weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(F.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))


def _merged(mask: Tensor | None, padding: Tensor | None, query: Tensor, heads: int) -> Tensor | None:
    """Return both masks as numbers to add to scores, (B or 1, heads or 1, queries, keys)."""
    if mask is not None:
        mask = _added(mask, query)
        mask = mask.view(query.size(1), heads, mask.size(1), mask.size(2)) if mask.ndim == 3 else mask[None, None]
    if padding is None:
        return mask
    padding = _added(padding, query)[:, None, None, :]
    return padding if mask is None else mask + padding


def _added(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
