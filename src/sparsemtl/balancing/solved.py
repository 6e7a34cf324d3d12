"""Aggregators of TorchJD whose weights are solved for exactly, by this package's solvers in place of TorchJD's."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import GramianWeightedAggregator, Weighting

from sparsemtl.balancing.solvers import Array, cagrad_weights, min_norm_weights, nash_weights


class _Solved(Weighting[Tensor]):
    """Base of weightings that solve for the weights on the CPU, in float64."""

    def forward(self, gramian: Tensor, /) -> Tensor:
        """Return the weights (T,) for a Gramian (T, T)."""
        rounding = float(torch.finfo(gramian.dtype).eps)
        weights = self._solve(gramian.detach().cpu().double().numpy(), rounding)
        return torch.from_numpy(weights).to(gramian)

    def _solve(self, gramian: Array, rounding: float) -> Array:
        raise NotImplementedError


class _MinNorm(_Solved):
    def _solve(self, gramian: Array, rounding: float) -> Array:
        return min_norm_weights(gramian)


class _ConflictAverse(_Solved):
    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def _solve(self, gramian: Array, rounding: float) -> Array:
        return cagrad_weights(gramian, self.c)


class _Bargaining(_Solved):
    def __init__(self, max_norm: float) -> None:
        super().__init__()
        self.max_norm = max_norm

    def _solve(self, gramian: Array, rounding: float) -> Array:
        weights = nash_weights(gramian, rounding)
        norm = sqrt(max(0.0, float(weights @ gramian @ weights)))
        return weights * (self.max_norm / norm) if 0 < self.max_norm < norm else weights


class _Scaled(Weighting[Tensor]):
    """Another weighting's weights times a factor."""

    def __init__(self, weighting: Weighting[Any], factor: float) -> None:
        super().__init__()
        self.weighting = weighting
        self.factor = factor

    def forward(self, gramian: Tensor, /) -> Tensor:
        """Return the weights (T,)."""
        return self.weighting(gramian) * self.factor


class KeptWeighting(Weighting[Tensor]):
    """Another weighting's weights, which are found every so many steps and kept between them.

    Args:
        weighting: weighting of Gramians (T, T).
        every: steps from one call of the weighting to the next.
        max_norm: largest norm of the combined gradient at every step; 0 sets no limit.
    """

    weights: Tensor | None

    def __init__(self, weighting: Weighting[Any], every: int, max_norm: float) -> None:
        super().__init__()
        self.weighting = weighting
        self.every = every
        self.max_norm = max_norm
        self.steps = 0
        self.register_buffer("weights", None)

    def forward(self, gramian: Tensor, /) -> Tensor:
        """Return the weights (T,)."""
        if self.weights is None or self.steps % self.every == 0:
            self.weights = self.weighting(gramian)
        weights: Tensor = self.weights
        self.steps += 1
        norm = float((weights @ gramian @ weights).clamp(min=0).sqrt())
        return weights * (self.max_norm / norm) if 0 < self.max_norm < norm else weights


def mgda() -> GramianWeightedAggregator:
    """Return the aggregator of `torchjd.aggregation.MGDA`."""
    return GramianWeightedAggregator(_MinNorm())


def cagrad(c: float, rescale: int = 0) -> GramianWeightedAggregator:
    """Return the aggregator of `torchjd.aggregation.CAGrad`, scaled as by the code of Liu et al. (2021)."""
    weighting = _ConflictAverse(c)
    factor = (1.0, 1 / (1 + c**2), 1 / (1 + c))[rescale]
    return GramianWeightedAggregator(_Scaled(weighting, factor) if rescale else weighting)


def nash_mtl(max_norm: float, every: int = 1) -> GramianWeightedAggregator:
    """Return the aggregator of `torchjd.aggregation.NashMTL`, which solves anew every so many steps."""
    weighting = _Bargaining(max_norm)
    return GramianWeightedAggregator(weighting if every == 1 else KeptWeighting(weighting, every, max_norm))
