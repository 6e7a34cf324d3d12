"""Sums over samples of |gradient|^power.

Most layers' gradients come factored: sample n's is left_n right_n, a product over the P positions (of a feature map,
of a sequence) at which the layer read and wrote. Three forms of the sum are equal, and `PowerSum` takes the cheapest:
a single position gives sum_n (l r)^2 = (l^2)^T (r^2), one matrix product; few positions give the square expanded into
pairs, sum_pq (l_p l_q)^T (r_p r_q), one as well; many give the gradients themselves, a few at a time.

A product of few rows takes as long as to read and write a large total. Single positions of large totals therefore wait
for those of the next batches (`PowerSum.flush`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Power = Literal["square", "abs"]

FEW = 6
"""Number of positions P up to which P (P + 1) / 2 products of pairs cost less than writing and squaring gradients."""

_CACHED = 2**18
"""Bytes above which each gradient is squared on its own, while it and its total are in the processor's cache."""

_WAITED_FOR = 2**20
"""Bytes of a total from which single positions wait."""
_ENOUGH = 128
"""Number of samples that do not wait for more."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to add in: squares of half precision would overflow."""
    return dtype if dtype == torch.float64 else torch.float32


@dataclass
class _Waiting:
    """Powers of single positions that wait to be added to `total` (I, O): factors (N, I) and (N, O) per batch."""

    total: Tensor
    left: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)

    def add(self) -> None:
        """Add to the total."""
        left, right = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (self.left, self.right))
        self.total.addmm_(left.T, right)


@dataclass(frozen=True)
class PowerSum:
    """Sum over samples of |gradient|^power, added to totals, which are complete after `flush`.

    Factors are cast to the total's dtype before anything is squared, so that half precision cannot overflow.

    Args:
        power: `square`, or `abs` for |gradient|.
        chunk: largest size of materialised gradients, in bytes.
    """

    power: Power
    chunk: int
    _waiting: dict[int, _Waiting] = field(default_factory=dict, init=False, repr=False, compare=False)

    def flush(self) -> None:
        """Add what waits."""
        for waiting in self._waiting.values():
            waiting.add()
        self._waiting.clear()

    def gradients(self, total: Tensor, gradients: Tensor) -> None:
        """Add gradients (N, *S) to a total (*S)."""
        total += self.powered(gradients.to(total.dtype)).sum(0)

    def outer_products(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add gradients left_n right_n, at the latest in `flush`.

        Args:
            total: (I, O).
            left: (N, I).
            right: (N, O).
        """
        if total.numel() * total.element_size() < _WAITED_FOR:
            self.pairs(total[None], left[None, :, None], right[None, :, None])
            return
        waiting = self._waiting.setdefault(total.data_ptr(), _Waiting(total))
        waiting.left.append(self.powered(left.to(total.dtype)))
        waiting.right.append(self.powered(right.to(total.dtype)))
        if sum(map(len, waiting.left)) >= _ENOUGH:
            self._waiting.pop(total.data_ptr()).add()

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
        """Return whether `pairs` is the cheaper sum for this number of positions."""
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
            left, right = _of_pairs(left, 1), _of_pairs(right, 2)
        left, right = (factor.permute(2, 0, 1, 3).flatten(1, 2) for factor in (left, right))
        total.baddbmm_(left.transpose(1, 2), right)

    def _materialised(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        size = total.numel() * total.element_size()
        count = 1 if size > _CACHED else min(len(left), max(1, self.chunk // size))
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
        """Return |tensor|^power."""
        return tensor.square() if self.power == "square" else tensor.abs()

    def _powered_(self, tensor: Tensor) -> Tensor:
        return tensor.square_() if self.power == "square" else tensor.abs_()


def _of_pairs(factor: Tensor, weight: int) -> Tensor:
    """Return the products of pairs of positions p <= q of a factor (P, ...), those of p < q times a weight."""
    count = len(factor)
    products = factor.new_empty(count * (count + 1) // 2, *factor.shape[1:])
    weighted, start = factor * weight, 0
    for p in range(count):
        torch.mul(factor[p], factor[p], out=products[start])
        torch.mul(weighted[p], factor[p + 1 :], out=products[start + 1 : start + count - p])
        start += count - p
    return products
