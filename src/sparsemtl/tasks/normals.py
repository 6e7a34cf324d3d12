"""The direction of the surface at every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import NonNegative, validated
from sparsemtl.tasks.dense import DenseTask
from sparsemtl.tasks.likelihoods import PixelDirection
from sparsemtl.tasks.task import Loss, known_pairs
from sparsemtl.tasks.vectors import cosine, squared_length, unit

if TYPE_CHECKING:
    from torchmetrics import Metric


class Normals(DenseTask):
    """Surface normals: a unit vector at every pixel.

    Args:
        name: the task's name.

    Labels have shape (B, 3, H, W) and length one; a pixel of all zeros is unknown. Outputs have the same shape and any
    length: only their direction counts. The loss is the mean of 1 - cosine of the angle. Metrics, over the known
    pixels of the whole split: `cosine`, `mean_angle` in degrees, and `within_11`, `within_22`, `within_30`, the parts
    off by less than 11.25, 22.5 and 30 degrees.
    """

    outputs = 3

    @validated
    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, weight=weight, target=target, loss=loss, metrics=metrics)

    @property
    def likelihood(self) -> PixelDirection:
        """Von Mises-Fisher of concentration one at every pixel."""
        return PixelDirection()

    def known(self, target: Tensor) -> Tensor:
        """Pixels whose label is not all zeros."""
        return target.abs().sum(1) > 0

    def check_labels(self, target: Tensor) -> None:
        """Three finite numbers a pixel, of length one or zero."""
        if target.ndim != 4 or target.shape[1] != 3:
            raise LabelError(
                f"task {self.name!r}: expected normals of shape (batch, 3, height, width), got {tuple(target.shape)}."
            )
        length = squared_length(target).sqrt()
        wrong = length[~((length - 1).abs() < 0.05) & (length != 0)]
        if wrong.numel():
            raise LabelError(
                f"task {self.name!r}: a normal has length {wrong[0].item():.3g}; expected 1, or three zeros where it "
                "is unknown."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Floating labels."""
        return target if target.is_floating_point() else target.float()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """1 - cosine, mean over the known pixels."""
        known = self.known(target)
        terms = 1 - cosine(*known_pairs(output, target, known.unsqueeze(1)))
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Cosine, mean angle, and parts within three angles."""
        from sparsemtl.tasks.dense_metrics import CosineSimilarity, MeanAngle, WithinAngle

        return {
            "cosine": CosineSimilarity(),
            "mean_angle": MeanAngle(),
            "within_11": WithinAngle(11.25),
            "within_22": WithinAngle(22.5),
            "within_30": WithinAngle(30.0),
        }

    def predict(self, output: Tensor) -> Tensor:
        """Unit vectors (B, 3, H, W)."""
        return unit(output)
