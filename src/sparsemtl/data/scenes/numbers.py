"""Numbers that every processor computes alike: square roots, and random numbers of single images.

Images depend on their seed and index only if each operation of the renderer has one result. IEEE 754 defines one for
+, -, *, /, square roots, comparisons and conversions; not for exponentials, logarithms, sines and powers, and not for
sums in an order that depends on the processor. torch computes square roots of tensors with Intel's MKL, which rounds
about one in 150 differently on processors of Intel and of AMD; those of numpy are the processor's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

COUNT = 320
"""Numbers per image; more than are used, so that a new one changes no other."""
SUMMANDS = 12
"""Uniform numbers per normal one: their variances of 1 / 12 add up to 1."""
LEVELS = 1 << 16
"""Equally likely values of such a uniform number."""


def sqrt(x: Tensor) -> Tensor:
    """Return the square roots of a tensor on the CPU, each the floating-point number nearest to the true root."""
    return torch.from_numpy(np.sqrt(x.numpy()))


class UniformNumbers:
    """Uniform numbers of N images, drawn in a fixed order; those of an image depend on the seed and its index only."""

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._numbers = torch.from_numpy(np.stack([np.random.default_rng((seed, i)).random(COUNT) for i in indices]))
        self._used = 0

    def uniform(self, low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        """Return numbers in [low, high), shape (N, *shape), float64; the bounds are broadcast."""
        count = int(np.prod(shape))
        numbers = self._numbers[:, self._used : self._used + count]
        self._used += count
        return low + (high - low) * numbers.reshape(len(numbers), *shape)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Return booleans that are true with a probability, shape (N, *shape)."""
        return self.uniform(0.0, 1.0, *shape) < probability

    def order(self, count: int) -> Tensor:
        """Return a permutation of 0 ... count - 1 per image, shape (N, count)."""
        return self.uniform(0.0, 1.0, count).argsort(dim=1)

    def whole(self, below: int, *shape: int) -> Tensor:
        """Return whole numbers in 0 ... below - 1, shape (N, *shape), int64."""
        return self.uniform(0.0, float(below), *shape).long()


def gaussian(seed: int, index: int, *shape: int) -> Tensor:
    """Return standard normal numbers of one image, float32, independent of its `UniformNumbers`.

    Each is the sum of twelve uniform ones: its mean is 0, its variance 1 and its density within 0.01 of the normal
    one, and whole numbers give it exactly. Samplers that need exponentials and logarithms depend on the processor.
    """
    uniform = np.random.default_rng((seed, index, 1)).integers(0, LEVELS, (SUMMANDS, *shape), dtype=np.uint16)
    total = uniform.sum(0, dtype=np.int32) - SUMMANDS * (LEVELS - 1) // 2
    return torch.from_numpy(total.astype(np.float32) / np.float32(LEVELS))
