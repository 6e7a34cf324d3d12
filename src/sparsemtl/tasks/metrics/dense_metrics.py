"""Metrics of label maps, depth and normals, each computed from sums over the whole split.

Variants of papers have the names of the papers.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.metric import Metric

from sparsemtl.tasks.vectors import cosine


class ReadsClasses:
    """Mark of metrics that read class indices (B, H, W) in place of logits too, so that these are compared once."""


def _classes(output: Tensor) -> Tensor:
    """Return class indices (B, H, W) of logits (B, C, H, W), or class indices as they are."""
    return output.argmax(1) if output.ndim == 4 else output


class _ConfusionMetric(ReadsClasses, Metric):
    """Counts of (label, prediction) pairs of pixels.

    Args:
        classes: number of classes.
        ignore_index: label of pixels that do not count.
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, classes: int, *, ignore_index: int) -> None:
        super().__init__()
        self.classes = classes
        self.ignore_index = ignore_index
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits (B, C, H, W), or class indices (B, H, W), and labels (B, H, W)."""
        valid = target != self.ignore_index
        pairs = (target * self.classes + _classes(output))[valid]
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)


class MeanIoU(_ConfusionMetric):
    """Intersection over union, averaged over the classes that are in labels or predictions.

    Args:
        classes: number of classes.
        ignore_index: label of pixels that do not count.
        background: class that the mean leaves out; its pixels count in the unions of the others.
    """

    def __init__(self, classes: int, *, ignore_index: int, background: int | None = None) -> None:
        super().__init__(classes, ignore_index=ignore_index)
        self.background = background

    def compute(self) -> Tensor:
        """Return the mean, in [0, 1]."""
        both = self.confusion.diagonal().double()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        counted = either > 0
        if self.background is not None:
            counted[self.background] = False
        return (both / either)[counted].mean().float()


class PixelAccuracy(_ConfusionMetric):
    """Fraction of the valid pixels with the right class."""

    def compute(self) -> Tensor:
        """Return the fraction, in [0, 1]."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).float()


class _MeanMetric(Metric, abc.ABC):
    """Base of means over terms."""

    full_state_update = False
    of_mean: Callable[[Tensor], Tensor] | None = None
    """Function of the mean that is the metric, None for the mean itself."""
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        terms = self.terms(output, target)
        self.total += terms.double().sum()
        self.count += terms.numel()

    def compute(self) -> Tensor:
        """Return the mean of all terms, NaN if there is none, or the function of it."""
        mean = (self.total / self.count).float()
        return mean if self.of_mean is None else self.of_mean(mean)

    @abc.abstractmethod
    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of a batch, a vector."""


class IoULessIsMore(ReadsClasses, _MeanMetric):
    """Intersection over union of all classes of an image together, TP / (TP + FP + FN), averaged over the images.

    Variant of Upadhyay et al. (Less is More, 2023), not comparable with `MeanIoU`.

    Args:
        ignore_index: label of pixels that do not count.
    """

    higher_is_better = True

    def __init__(self, *, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per image with a known pixel."""
        valid = (target != self.ignore_index).flatten(1)
        right = (_classes(output) == target).flatten(1) & valid
        pixels, hits = valid.sum(1), right.sum(1)  # a wrong pixel is an FP of one class and an FN of another
        return (hits / (2 * pixels - hits))[pixels > 0]


class _MaskedDepth(_MeanMetric):
    """Base of means over the pixels of known depth, outputs and labels (B, 1, H, W); 0 is unknown."""

    higher_is_better = False


class AbsoluteError(_MaskedDepth):
    """Mean of |prediction - depth|, in the unit of the depth."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per known pixel."""
        known = target > 0
        return (output[known] - target[known]).abs()


class RelativeError(_MaskedDepth):
    """Mean of |prediction - depth| / depth, a ratio."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per known pixel."""
        known = target > 0
        return (output[known] - target[known]).abs() / target[known]


class RootMeanSquare(_MaskedDepth):
    """Root of the mean of (prediction - depth)^2."""

    of_mean = staticmethod(torch.sqrt)

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per known pixel."""
        known = target > 0
        return (output[known] - target[known]).square()


class DepthErrorLessIsMore(_MaskedDepth):
    """Mean of |prediction - depth| / largest depth of the image.

    Variant of Upadhyay et al. (Less is More, 2023), who divide depth maps by their largest value.
    """

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per known pixel."""
        known = target > 0
        largest = target.flatten(1).amax(1).clamp(min=torch.finfo(target.dtype).tiny).view(-1, 1, 1, 1)
        return ((output - target).abs() / largest)[known]


def cosines(output: Tensor, target: Tensor) -> Tensor:
    """Return the cosines of the angles between outputs and unit normals (B, 3, H, W) at the valid pixels, a vector."""
    valid = target.abs().sum(1) > 0
    return cosine(output, target)[valid]


class CosineSimilarity(_MeanMetric):
    """Mean cosine of the angle between predicted and true normals."""

    higher_is_better = True

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per valid pixel."""
        return cosines(output, target)


class MeanAngle(_MeanMetric):
    """Mean angle between predicted and true normals, in degrees."""

    higher_is_better = False

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per valid pixel."""
        return cosines(output, target).clamp(-1, 1).acos() * (180 / math.pi)


class WithinAngle(_MeanMetric):
    """Fraction of the valid pixels with an angle between predicted and true normal below a limit.

    Args:
        degrees: limit in degrees; 11.25, 22.5 and 30 are customary.
    """

    higher_is_better = True

    def __init__(self, degrees: float, **options: Any) -> None:
        super().__init__(**options)
        self.least = math.cos(math.radians(degrees))

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one term per valid pixel."""
        return (cosines(output, target) > self.least).double()
