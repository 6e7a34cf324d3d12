"""Torchmetrics' metrics of classification, computed from logits."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassCalibrationError,
)
from torchmetrics.utilities import dim_zero_cat


class Accuracy(MulticlassAccuracy):
    """Share of right predictions, computed from counts per class as F1, precision and recall are.

    Args:
        classes: number of classes.
        ignore_index: label that does not count.
    """

    def __init__(self, classes: int, *, ignore_index: int | None = None) -> None:
        super().__init__(classes, average="macro", ignore_index=ignore_index, validate_args=False)  # counts per class

    def compute(self) -> Tensor:
        """Return the share, in [0, 1]."""
        right, _, _, missed = self._final_state()
        return right.sum().float() / (right + missed).sum().float()


class SecondClassF1(BinaryF1Score):
    """F1 of the second of two classes, the positive one."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (N, 2) and class indices (N,)."""
        super().update(output.argmax(1), target)


class SecondClassPrecision(BinaryPrecision):
    """Precision of the second of two classes, the positive one; 0 if that class is never predicted."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (N, 2) and class indices (N,)."""
        super().update(output.argmax(1), target)


class SecondClassRecall(BinaryRecall):
    """Recall of the second of two classes, the positive one; 0 if no sample has that class."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (N, 2) and class indices (N,)."""
        super().update(output.argmax(1), target)


class SecondClassAUROC(BinaryAUROC):
    """Area under the ROC curve of two classes."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (N, 2) and class indices (N,)."""
        super().update(output.softmax(1)[:, 1], target)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the area, in [0, 1].

        Raises:
            ValueError: if one of the classes has no sample.
        """
        _check_present(self, (0, 1))
        return super().compute()


class SecondClassAveragePrecision(BinaryAveragePrecision):
    """Average precision of the second of two classes, the positive one."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (N, 2) and class indices (N,)."""
        super().update(output.softmax(1)[:, 1], target)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the average precision, in [0, 1].

        Raises:
            ValueError: if the second class has no sample.
        """
        _check_present(self, (1,))
        return super().compute()


def _check_present(metric: SecondClassAUROC | SecondClassAveragePrecision, classes: Iterable[int]) -> None:
    """Raise a ValueError if a class has no sample: torchmetrics would return 0, the worst value, with a warning."""
    found = dim_zero_cat(metric.target)
    if missing := [index for index in classes if not bool((found == index).any())]:
        raise ValueError(f"no sample has class {missing[0]}.")


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error: mean gap between confidence and accuracy over 15 bins (Guo et al. 2017)."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (N, C) and class indices (N,)."""
        confidences, classes = _most_probable(output)
        self.confidences.append(confidences)
        self.accuracies.append((classes == target).float())


def _most_probable(output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability and the index of the most probable class, (N,) each.

    Of few classes, torch's softmax is several times as fast along the first axis. It then treats samples in vectors;
    padding fills the last one, so that no bit of a sample's probability depends on the number of samples.
    """
    count, classes = output.shape
    if classes >= _FEW:
        return output.softmax(1).max(1)
    columns = output.new_zeros(classes, -(-count // _VECTOR) * _VECTOR)
    columns[:, :count] = output.t()
    probabilities, found = columns.softmax(0).max(0)
    return probabilities[:count], found[:count]


_FEW = 16
_VECTOR = 64
"""Number of samples, a multiple of the entries of a vector on every processor."""
