"""Head of tasks with an output per token, and the features that it reads."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from sparsemtl.errors import ParameterError


class TokenFeatures(NamedTuple):
    """Features of sequences, for tasks per token and tasks per sequence on one encoder.

    Attributes:
        tokens: (B, S, width), read by heads of tasks per token.
        pooled: (B, width), one vector per sequence, read by all other heads.
    """

    tokens: Tensor
    pooled: Tensor


class TokenHead(nn.Linear):
    """Linear layer on the features of every token: the default head of `TokenClassification`."""

    def forward(self, features: TokenFeatures | Tensor) -> Tensor:
        """Map features (B, S, width), or the tokens of `TokenFeatures`, to outputs (B, S, outputs)."""
        tokens = features.tokens if isinstance(features, TokenFeatures) else features
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ParameterError(
                f"a token head reads features of shape (batch, tokens, width), the encoder gave {found}. "
                "`sm.TransformerEncoder` gives them, as does any encoder that returns such a tensor."
            )
        return super().forward(tokens)
