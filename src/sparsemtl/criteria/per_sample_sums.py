"""The arithmetic of per-sample gradients: sum over samples of |gradient|^power, without keeping a gradient a sample.

Most layers' gradients come factored: sample n's is left_n right_n, a product over the P positions (of a feature map,
of a sequence) at which the layer read and wrote. Three forms of the sum are equal, and the cheapest is taken:
a single position gives sum_n (l r)^2 = (l^2)^T (r^2), one matrix product; few positions give the square expanded into
pairs, sum_pq (l_p l_q)^T (r_p r_q), one as well; many give the gradients themselves, a few at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Power = Literal["square", "abs"]

FEW = 6
"""Up to so many positions P the P (P + 1) / 2 products of pairs cost less than writing and squaring gradients."""

CACHED = 2**18
"""Bytes above which a gradient is squared on its own, while it and its total are still in the processor's cache."""


@dataclass(frozen=True)
class PowerSum:
    """Adds sum over samples of |gradient|^power to totals.

    Factors are cast to the total's dtype before anything is squared, so that half precision cannot overflow.

    Args:
        power: `square`, or `abs` for |gradient|.
        chunk: bytes that materialised gradients may take.
    """

    power: Power
    chunk: int

    def gradients(self, total: Tensor, gradients: Tensor) -> None:
        """Add gradients (N, *S) to a total (*S)."""
        total += self.powered(gradients.to(total.dtype)).sum(0)

    def products(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add gradients left_n right_n.

        Args:
            total: (G, I, O), a block for each group of channels.
            left: (N, G, I, P).
            right: (N, G, P, O).
        """
        if self.prefers_pairs(right.shape[2]):
            self.pairs(total, left.permute(3, 0, 1, 2), right.permute(2, 0, 1, 3))
        else:
            self._materialised(total, left.to(total.dtype), right.to(total.dtype))

    def prefers_pairs(self, positions: int) -> bool:
        """Tell whether so many positions are better summed by `pairs`."""
        return positions <= (FEW if self.power == "square" else 1)

    def pairs(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add gradients sum_p left_p right_p by pairs of positions.

        Args:
            total: (G, I, O).
            left: (P, N, G, I); P is 1 if the power is `abs`.
            right: (P, N, G, O).
        """
        left, right = left.to(total.dtype), right.to(total.dtype)
        if len(left) == 1:
            left, right = self.powered(left), self.powered(right)
        else:
            first, second = torch.triu_indices(len(left), len(left), device=left.device)
            twice = torch.where(first == second, 1, 2).to(total.dtype).view(-1, 1, 1, 1)
            left, right = left[first] * left[second], right[first] * right[second] * twice
        left, right = (factor.permute(2, 0, 1, 3).flatten(1, 2) for factor in (left, right))
        total.baddbmm_(left.transpose(1, 2), right)

    def _materialised(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        size = total.numel() * total.element_size()
        count = 1 if size > CACHED else min(len(left), max(1, self.chunk // size))
        scratch = total.new_empty(count, *total.shape)
        for start in range(0, len(left), count):
            n = min(count, len(left) - start)
            part = scratch[:n]
            factors = (factor[start : start + n].flatten(0, 1) for factor in (left, right))
            torch.bmm(*factors, out=part.view(-1, *total.shape[1:]))
            if n > 1:
                total += self._powered_(part).sum(0)
            elif self.power == "square":
                total.addcmul_(part[0], part[0])
            else:
                total += part[0].abs_()

    def powered(self, tensor: Tensor) -> Tensor:
        """|tensor|^power."""
        return tensor.square() if self.power == "square" else tensor.abs()

    def _powered_(self, tensor: Tensor) -> Tensor:
        return tensor.square_() if self.power == "square" else tensor.abs_()
