"""Adapters: modules that take their inputs as keyword or positional arguments, as encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.heads.tokens import TokenFeatures

Pooling = Literal["pooler", "first", "last", "mean"]


class EncoderAdapter(nn.Module):
    """Module that is called with the parts of its input, as an encoder.

    A mapping becomes keyword arguments, a tuple or list positional ones; anything else is the one argument.

    Args:
        module: module of any signature.
        output: what of the module's output is the features: a key or attribute, or an index; None for all of it.
        out_features: width of the features, for default heads; by default they take it from the first batch.

    Examples:
        >>> class Both(nn.Module):
        ...     def forward(self, left, right):
        ...         return {"sum": left + right, "difference": left - right}
        >>> encoder = EncoderAdapter(Both(), output="sum")
        >>> encoder({"left": torch.ones(2, 3), "right": torch.ones(2, 3)}).tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    def __init__(self, module: nn.Module, output: str | int | None = None, out_features: int | None = None) -> None:
        super().__init__()
        self.module = module
        self.output = output
        self.out_features = out_features

    def forward(self, x: Any) -> Any:
        """Call the module with the parts of `x`, and pick its output."""
        return _picked(call(self.module, x), self.output)


class TransformerEncoder(nn.Module):
    """Encoder of the transformers library with features per sequence and per token.

    Default heads of sample tasks read one vector per sequence, those of `TokenClassification` the vectors of the
    tokens, so that both kinds share one encoder.

    Args:
        model: a model without head, such as `AutoModel.from_pretrained(...)`: BERT-like, ViT, or a decoder.
        pool: vector of a sequence: `pooler` is the model's own pooler output; `first` is the first token, as BERT's and
            ViT's class token; `last` is the last token that the attention mask keeps, for decoders; `mean` is the mean
            over the tokens that it keeps. By default `pooler`, if the model has one.
        padding: token number of padding, which the attention mask leaves out where inputs are a tensor of token numbers
            (B, S). None: the tensor is the model's first argument and has no mask.

    Raises:
        ParameterError: if the model has no pooler and `pool` does not say what to take.

    Examples:
        >>> encoder = TransformerEncoder(AutoModel.from_pretrained("bert-base-uncased"))  # doctest: +SKIP
        >>> tasks = [Classification("topic", 3), TokenClassification("tags", 9)]          # doctest: +SKIP
        >>> model = SharedBottom(encoder, tasks)                                          # doctest: +SKIP
        >>> model({"input_ids": ids, "attention_mask": mask})                             # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, pool: Pooling | None = None, *, padding: int | None = None) -> None:
        super().__init__()
        if pool not in ("pooler", "first", "last", "mean", None):
            raise ParameterError(f"`pool` must be 'pooler', 'first', 'last' or 'mean', got {pool!r}.")
        has_pooler = getattr(model, "pooler", None) is not None
        if (pool is None and not has_pooler) or (pool == "pooler" and not has_pooler):
            raise ParameterError(
                f"{type(model).__name__} has no pooler. Say which vector stands for a sequence: pool='first' for a "
                "class token (BERT-like, ViT), 'last' for decoders, or 'mean'."
            )
        self.model = model
        self.pool: Pooling = pool or "pooler"
        self.padding = padding
        self.out_features = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Any) -> TokenFeatures:
        """Return the features of a batch.

        Args:
            x: keyword arguments of the model as a mapping (`BatchEncoding`), or its first argument as a tensor.
        """
        if self.padding is not None and isinstance(x, Tensor):
            x = {"input_ids": x, "attention_mask": (x != self.padding).long()}
        outputs = call(self.model, x)
        tokens: Tensor = outputs.last_hidden_state
        if self.pool == "pooler":
            return TokenFeatures(tokens, outputs.pooler_output)
        mask = x.get("attention_mask") if isinstance(x, Mapping) else None
        return TokenFeatures(tokens, _pooled(tokens, mask, self.pool))


def call(module: nn.Module, x: Any) -> Any:
    """Call a module with the parts of `x`: a mapping as keyword arguments, a plain tuple or list as positional ones."""
    if isinstance(x, Mapping):
        return module(**x)
    if type(x) in (tuple, list):
        return module(*x)
    return module(x)


def _picked(outputs: Any, which: str | int | None) -> Any:
    """Return a part of a module's output: by key or attribute, or by index; None is all of it.

    Raises:
        ParameterError: if the output has no such part.
    """
    if which is None:
        return outputs
    try:
        if isinstance(which, int) or isinstance(outputs, Mapping):
            return outputs[which]
        return getattr(outputs, which)
    except (KeyError, IndexError, AttributeError, TypeError):
        found = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ParameterError(f"the module's output has no part {which!r}; it is {found}.") from None


def _pooled(tokens: Tensor, mask: Tensor | None, pool: Pooling) -> Tensor:
    """Return one vector per sequence, (B, width).

    Args:
        tokens: (B, S, width).
        mask: (B, S), not zero at tokens that count; None for all.
        pool: `first`, `last` or `mean`.
    """
    if pool == "first":
        return tokens[:, 0]
    if mask is None:
        return tokens[:, -1] if pool == "last" else tokens.mean(1)
    if pool == "mean":
        weights = mask.to(tokens.dtype).unsqueeze(2)
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    last = torch.where(mask != 0, positions, 0).amax(1)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]
