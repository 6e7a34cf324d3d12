"""Metrics of label maps, depth and normals, each from sums over the whole split, never from means of batch means.

The papers' own variants stand beside them under the papers' names.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from sparsemtl.tasks.vectors import cosine


class ConfusionMetric(Metric):
    """Counts of (label, prediction) pairs of pixels.

    Args:
        classes: number of classes.
        ignore_index: the label of pixels that do not count.
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
        """Add logits (B, C, H, W) and labels (B, H, W)."""
        valid = target != self.ignore_index
        pairs = target[valid] * self.classes + output.argmax(1)[valid]
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)


class MeanIoU(ConfusionMetric):
    """Mean over the classes of intersection over union; classes in neither labels nor predictions are left out.

    Args:
        classes: number of classes.
        ignore_index: the label of pixels that do not count.
        background: class that is left out of the mean; its pixels count in the unions of the others.
    """

    def __init__(self, classes: int, *, ignore_index: int, background: int | None = None) -> None:
        super().__init__(classes, ignore_index=ignore_index)
        self.background = background

    def compute(self) -> Tensor:
        """In [0, 1]."""
        both = self.confusion.diagonal().double()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        counted = either > 0
        if self.background is not None:
            counted[self.background] = False
        return (both / either)[counted].mean().float()


class PixelAccuracy(ConfusionMetric):
    """Part of the valid pixels whose class is right."""

    def compute(self) -> Tensor:
        """In [0, 1]."""
        return (self.confusion.diagonal().sum() / self.confusion.sum()).float()


class MeanMetric(Metric, abc.ABC):
    """A sum of terms over their number."""

    full_state_update = False
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
        """The mean of all terms, NaN if there was none."""
        return (self.total / self.count).float()

    @abc.abstractmethod
    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """What a batch adds, a vector."""


class IoULessIsMore(MeanMetric):
    """Intersection over union of all classes of an image together, TP / (TP + FP + FN), mean over the images.

    The variant of Upadhyay et al. (Less is More, 2023). Not comparable with `MeanIoU`.

    Args:
        ignore_index: the label of pixels that do not count.
    """

    higher_is_better = True

    def __init__(self, *, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each image with a known pixel."""
        valid = (target != self.ignore_index).flatten(1)
        right = (output.argmax(1) == target).flatten(1) & valid
        pixels, hits = valid.sum(1), right.sum(1)  # a wrong pixel is one class's FP and another's FN
        return (hits / (2 * pixels - hits))[pixels > 0]


class MaskedDepth(MeanMetric):
    """A mean over the pixels of known depth, outputs and labels (B, 1, H, W); 0 is unknown."""

    higher_is_better = False


class AbsoluteError(MaskedDepth):
    """Mean of |prediction - depth|, in the depth's own unit."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each known pixel."""
        known = target > 0
        return (output[known] - target[known]).abs()


class RelativeError(MaskedDepth):
    """Mean of |prediction - depth| / depth, a ratio and not per cent."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each known pixel."""
        known = target > 0
        return (output[known] - target[known]).abs() / target[known]


class RootMeanSquare(MaskedDepth):
    """Root of the mean of (prediction - depth)^2."""

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each known pixel."""
        known = target > 0
        return (output[known] - target[known]).square()

    def compute(self) -> Tensor:
        """The root."""
        return super().compute().sqrt()


class DepthErrorLessIsMore(MaskedDepth):
    """Mean of |prediction - depth| over each image's largest depth.

    The variant of Upadhyay et al. (Less is More, 2023), who divide depth maps by their largest value.
    """

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each known pixel."""
        known = target > 0
        largest = target.flatten(1).amax(1).clamp(min=torch.finfo(target.dtype).tiny).view(-1, 1, 1, 1)
        return ((output - target).abs() / largest)[known]


def cosines(output: Tensor, target: Tensor) -> Tensor:
    """Cosine of the angle between outputs and unit normals (B, 3, H, W) at the valid pixels, a vector."""
    valid = target.abs().sum(1) > 0
    return cosine(output, target)[valid]


class CosineSimilarity(MeanMetric):
    """Mean cosine of the angle between predicted and true normals."""

    higher_is_better = True

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each valid pixel."""
        return cosines(output, target)


class MeanAngle(MeanMetric):
    """Mean angle between predicted and true normals, in degrees."""

    higher_is_better = False

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each valid pixel."""
        return cosines(output, target).clamp(-1, 1).acos() * (180 / math.pi)


class WithinAngle(MeanMetric):
    """Part of the valid pixels whose normal is off by less than an angle.

    Args:
        degrees: the angle; 11.25, 22.5 and 30 are customary.
    """

    higher_is_better = True

    def __init__(self, degrees: float, **options: Any) -> None:
        super().__init__(**options)
        self.least = math.cos(math.radians(degrees))

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One of each valid pixel."""
        return (cosines(output, target) > self.least).double()
