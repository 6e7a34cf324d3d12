"""Aggregators of TorchJD whose weights are solved for exactly, by this package's solvers in place of TorchJD's."""

from __future__ import annotations

from math import sqrt

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


def mgda() -> GramianWeightedAggregator:
    """Return the aggregator of `torchjd.aggregation.MGDA`."""
    return GramianWeightedAggregator(_MinNorm())


def cagrad(c: float) -> GramianWeightedAggregator:
    """Return the aggregator of `torchjd.aggregation.CAGrad`."""
    return GramianWeightedAggregator(_ConflictAverse(c))


def nash_mtl(max_norm: float) -> GramianWeightedAggregator:
    """Return the aggregator of `torchjd.aggregation.NashMTL`, which solves anew at every step."""
    return GramianWeightedAggregator(_Bargaining(max_norm))
