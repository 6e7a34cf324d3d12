"""An encoder behind a stem, which turns what the data gives into what the encoder reads."""

from __future__ import annotations

from torch import Tensor, nn

DESCRIPTIONS = ("out_features", "num_features", "stride")
"""What an encoder tells of its features."""


class Stemmed(nn.Module):
    """A stem, then a body, whose features are the encoder's.

    Args:
        stem: maps a batch of samples to what the body reads, as `ColumnEmbedding` does with a table's categories.
        body: any encoder; what it tells of its features (`out_features`, `stride`) is told of the whole.

    Example:
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
        """Map samples (B, ...) to the body's features."""
        features: Tensor = self.body(self.stem(x))
        return features
