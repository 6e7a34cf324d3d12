"""Multi-label metrics to which an unknown label adds nothing, not even to the mean over the labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.classification import (
    MultilabelAccuracy,
    MultilabelF1Score,
    MultilabelPrecision,
    MultilabelRecall,
)
from torchmetrics.utilities import dim_zero_cat

UNKNOWN = -1
"""What stands for an unknown label; make the metrics with `ignore_index=UNKNOWN` and `average="none"`."""


class KnownLabelAccuracy(MultilabelAccuracy):
    """Accuracy of every label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Mean accuracy, a scalar."""
        return super().compute()[_seen(self)].mean()


class KnownLabelF1(MultilabelF1Score):
    """F1 of every label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Mean F1, a scalar."""
        return super().compute()[_seen(self)].mean()


class KnownLabelPrecision(MultilabelPrecision):
    """Precision of every label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Mean precision, a scalar."""
        return super().compute()[_seen(self)].mean()


class KnownLabelRecall(MultilabelRecall):
    """Recall of every label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Mean recall, a scalar."""
        return super().compute()[_seen(self)].mean()


def _seen(metric: MultilabelAccuracy | MultilabelF1Score | MultilabelPrecision | MultilabelRecall) -> Tensor:
    counts = (metric.tp, metric.fp, metric.tn, metric.fn)
    return torch.stack([dim_zero_cat(count) for count in counts]).any(0)
