"""The k largest of some scores: exactly k, of equal ones the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SINGLE_PRECISION = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes whose values are ranked in single precision; all others are ranked in double precision."""
_SAMPLE = 2**17
"""Scores in the sample by which the search for the k-th largest is bounded."""
_CHUNK = 2**22
"""Scores among which ties are looked for at a time; an index of a tie has 8 bytes."""


def budget(size: int, keep: float) -> int:
    """Return K = clamp(round(keep * size), 1, size)."""
    return min(max(round(keep * size), 1), size)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return a bool mask of exactly the k largest entries of a vector; among equals the first."""
    return _largest([scores], k)[0]


def largest_of_all(scores: Sequence[Tensor], k: int, floor: int) -> list[Tensor]:
    """Return bool masks of the k largest entries of some vectors, with at least `floor` of every vector."""
    masks = _largest(scores, k)
    if all(int(mask.count_nonzero()) >= min(floor, len(mask)) for mask in masks):
        return masks
    kept = [top_k(score, floor) for score in scores]
    left = k - sum(int(mask.count_nonzero()) for mask in kept)
    others = _largest([score[~mask] for score, mask in zip(scores, kept, strict=True)], left)
    for mask, other in zip(kept, others, strict=True):
        mask[~mask] = other
    return kept


def _largest(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Return bool masks of exactly the k largest entries of some vectors together; among equals the first."""
    if k <= 0 or k >= sum(map(len, scores)):
        return [torch.full_like(score, k > 0, dtype=torch.bool) for score in scores]
    dtype = torch.float32 if all(score.dtype in _SINGLE_PRECISION for score in scores) else torch.float64
    threshold = _kth_largest([score.detach().to(dtype) for score in scores], k)
    masks = [score.to(dtype) >= threshold for score in scores]
    surplus = sum(int(mask.count_nonzero()) for mask in masks) - k
    for score, mask in zip(reversed(scores), reversed(masks), strict=True):
        for values, kept in zip(reversed(score.split(_CHUNK)), reversed(mask.split(_CHUNK)), strict=True):
            if surplus > 0:
                dropped = (values.to(dtype) == threshold).nonzero().flatten()[-surplus:]
                kept[dropped] = False
                surplus -= len(dropped)
    return masks


def _kth_largest(scores: Sequence[Tensor], k: int) -> Tensor:
    """Return the k-th largest entry of some vectors together, a tensor without axes.

    On the CPU it is looked for between two bounds that a sample suggests (Floyd & Rivest 1975), so that almost all
    entries are compared but not copied.
    """
    if any(score.device.type != "cpu" for score in scores):
        joined = torch.cat(list(scores))
        return joined.kthvalue(len(joined) - k + 1).values
    arrays = [score.numpy() for score in scores]
    low, high = _bounds(arrays, k)
    above = sum(np.count_nonzero(array > high) for array in arrays)
    between = np.concatenate([array[(array >= low) & (array <= high)] for array in arrays])
    if not above < k <= above + len(between):
        above, between = 0, np.concatenate(arrays)
    at = above + len(between) - k
    between.partition(at)
    return torch.tensor(between[at])


def _bounds(arrays: Sequence[Any], k: int) -> tuple[Any, Any]:
    """Return values between which the k-th largest entry is, but for a sample that misleads: six deviations of it."""
    size = sum(map(len, arrays))
    sample = np.sort(np.concatenate([array[:: max(1, size // _SAMPLE)] for array in arrays]))[::-1]
    share = k / size
    rank, margin = share * len(sample), 6 * (share * (1 - share) * len(sample)) ** 0.5 + 1
    last = len(sample) - 1
    return sample[min(last, math.ceil(rank + margin))], sample[max(0, math.floor(rank - margin))]
