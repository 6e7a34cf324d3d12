"""Multi-label metrics over known labels: an unknown label adds nothing, not even to the mean over the labels."""

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
"""Value of an unknown label. The metrics take `ignore_index=UNKNOWN` and `average="none"`."""


class KnownLabelAccuracy(MultilabelAccuracy):
    """Accuracy per label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Return the mean accuracy, a scalar."""
        return super().compute()[_seen(self)].mean()


class KnownLabelF1(MultilabelF1Score):
    """F1 per label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Return the mean F1, a scalar."""
        return super().compute()[_seen(self)].mean()


class KnownLabelPrecision(MultilabelPrecision):
    """Precision per label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Return the mean precision, a scalar."""
        return super().compute()[_seen(self)].mean()


class KnownLabelRecall(MultilabelRecall):
    """Recall per label, averaged over the labels that were known at least once."""

    def compute(self) -> Tensor:
        """Return the mean recall, a scalar."""
        return super().compute()[_seen(self)].mean()


def _seen(metric: MultilabelAccuracy | MultilabelF1Score | MultilabelPrecision | MultilabelRecall) -> Tensor:
    counts = (metric.tp, metric.fp, metric.tn, metric.fn)
    return torch.stack([dim_zero_cat(count) for count in counts]).any(0)
