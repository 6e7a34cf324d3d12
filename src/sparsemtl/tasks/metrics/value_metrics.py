"""Regression metrics over known values: a NaN label adds nothing, while the other values of its sample count."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics.metric import Metric
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score


class KnownValues:
    """Mark of metrics that accept NaN in labels (N, D)."""


class KnownSquaredError(KnownValues, MeanSquaredError):
    """Mean squared error of all known values, or its root."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add values and labels (N, D)."""
        known = ~target.isnan()
        super().update(preds[known], target[known])


class KnownAbsoluteError(KnownValues, MeanAbsoluteError):
    """Mean absolute error of all known values."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add values and labels (N, D)."""
        known = ~target.isnan()
        super().update(preds[known], target[known])


class KnownR2(KnownValues, Metric):
    """R² per value over its known labels, averaged over the values with two or more known labels.

    Args:
        dims: number of values per sample.
    """

    higher_is_better = True
    is_differentiable = True
    full_state_update = False

    def __init__(self, dims: int, **options: Any) -> None:
        super().__init__(**options)
        self.columns = nn.ModuleList(R2Score() for _ in range(dims))

    @property
    def _scores(self) -> list[R2Score]:
        return cast("list[R2Score]", list(self.columns))

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add values and labels (N, D)."""
        for column, metric in enumerate(self._scores):
            known = ~target[:, column].isnan()
            if bool(known.any()):
                metric.update(output[known, column], target[known, column])

    def compute(self) -> Tensor:
        """Return the mean, at most 1.

        Raises:
            ValueError: if no value has two known labels.
        """
        scores = [metric.compute() for metric in self._scores if int(metric.total) >= 2]
        if not scores:
            raise ValueError("Needs at least two samples to calculate r2 score.")
        return torch.stack(scores).mean()

    def reset(self) -> None:
        """Reset the metric of every value."""
        super().reset()
        for metric in self._scores:
            metric.reset()
