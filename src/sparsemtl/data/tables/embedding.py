"""Coded rows as vectors that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural, validated

WIDEST = 50
"""Largest default width of an embedding."""


def embedding_width(cardinality: int) -> int:
    """Return the default width of an embedding of so many codes, by fastai's rule of thumb: 1.6 * codes ** 0.56."""
    width: float = 1.6 * cardinality**0.56
    return min(WIDEST, ceil(width))


class ColumnEmbedding(nn.Module):
    """Numbers as they are, every category as a vector of its own; code 0, the unknown, is always zeros.

    Args:
        cardinalities: number of codes per category, code 0 included.
        numeric: width of the numbers, which come first.
        widths: widths of the categories' vectors; by default those of `embedding_width`.

    Examples:
        >>> stem = ColumnEmbedding([3, 10], numeric=2, widths=[4, 5])
        >>> stem(torch.tensor([[0.1, -0.7, 2, 9]])).shape
        torch.Size([1, 11])
    """

    @validated
    def __init__(
        self, cardinalities: Sequence[Count], numeric: Natural, *, widths: Sequence[Count] | None = None
    ) -> None:
        super().__init__()
        widths = [embedding_width(cardinality) for cardinality in cardinalities] if widths is None else widths
        if len(widths) != len(cardinalities):
            raise ParameterError(f"ColumnEmbedding: {len(widths)} widths for {len(cardinalities)} categories.")
        self.numeric = numeric
        self.embeddings = nn.ModuleList(
            nn.Embedding(cardinality, width, padding_idx=0)
            for cardinality, width in zip(cardinalities, widths, strict=True)
        )
        self.largest = max(cardinalities, default=1) - 1
        self.out_features = numeric + sum(widths)

    def forward(self, coded: Tensor) -> Tensor:
        """Map rows (B, numeric + categories) to (B, out_features).

        Raises:
            ParameterError: if the dtype of the rows cannot hold the codes: half precision rounds whole numbers above
                some hundreds, and the vector of another category would be learned.
        """
        dtype = coded.dtype
        if dtype.is_floating_point and self.largest > 2 / torch.finfo(dtype).eps:
            raise ParameterError(
                f"categories have codes up to {self.largest}, which {dtype} does not hold. Use a mixed precision, or "
                "`encoding: one-hot`."
            )
        codes = coded[:, self.numeric :].long()
        vectors = [embed(column) for embed, column in zip(self.embeddings, codes.unbind(1), strict=True)]
        return torch.cat([coded[:, : self.numeric], *vectors], dim=1)
