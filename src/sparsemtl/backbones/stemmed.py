"""Encoder behind a stem, which converts samples of the data into inputs of the encoder."""

from __future__ import annotations

from torch import Tensor, nn

DESCRIPTIONS = ("out_features", "num_features", "stride")
"""Attributes that describe the features of an encoder."""


class Stemmed(nn.Module):
    """Stem, then body.

    Args:
        stem: module from a batch of samples to inputs of the body, such as `ColumnEmbedding` for categories.
        body: any encoder. Its attributes `out_features` and `stride` are those of the whole.

    Examples:
        >>> body = nn.Linear(3, 2)
        >>> Stemmed(nn.Linear(7, 3), body).out_features
        2
    """

    def __init__(self, stem: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.body = body
        for name in DESCRIPTIONS:
            if hasattr(body, name):
                setattr(self, name, getattr(body, name))

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (B, ...) to the features of the body."""
        features: Tensor = self.body(self.stem(x))
        return features
