"""Surface normals: one direction per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks.dense import DenseTask
from sparsemtl.tasks.likelihoods import PixelDirection
from sparsemtl.tasks.task import TaskOptions, known_pairs, update_labelled
from sparsemtl.tasks.vectors import cosine, squared_length, unit

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class Normals(DenseTask):
    """Surface normals: one unit vector per pixel.

    Labels have shape (B, 3, H, W) and length one; a pixel of zeros or NaN is unknown. Outputs have the same shape and
    any length: only their direction counts. The loss is the mean of 1 - cosine of the angle. Metrics, over the known
    pixels of the whole split: `cosine`, `mean_angle` in degrees, and `within_11`, `within_22` and `within_30`, the
    fractions of pixels with an angle below 11.25, 22.5 and 30 degrees.
    """

    outputs = 3

    @validated
    def __init__(self, name: Annotated[str, Doc("Name of the task.")], **options: Unpack[TaskOptions]) -> None:
        super().__init__(name, **options)

    @property
    def default_likelihood(self) -> PixelDirection:
        """Von Mises-Fisher distribution of concentration one per pixel."""
        return PixelDirection()

    def known(self, target: Tensor) -> Tensor:
        """Return a mask (B, H, W) of the pixels whose label is not all zeros."""
        return target.abs().sum(1) > 0

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless each pixel has three numbers, of length one or zero, or NaN."""
        if target.ndim != 4 or target.shape[1] != 3:
            raise LabelError(
                f"task {self.name!r}: expected normals of shape (batch, 3, height, width), got {tuple(target.shape)}."
            )
        length = squared_length(target).sqrt()
        wrong = ~((length - 1).abs() < 0.05) & (length != 0) & ~length.isnan()
        if bool(wrong.any()):
            raise LabelError(
                f"task {self.name!r}: a normal has length {length[wrong][0].item():.3g}; expected 1, or zeros or "
                "NaN where it is unknown."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Return labels as floats, with zeros in the place of vectors with a NaN."""
        if not target.is_floating_point():
            return target.float()
        return torch.where(target.isnan().any(1, keepdim=True), 0.0, target)

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean of 1 - cosine of the known pixels."""
        known = self.known(target)
        terms = 1 - cosine(*known_pairs(output, target, known.unsqueeze(1)))
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Return cosine, mean angle, and fractions of pixels within three angles."""
        from sparsemtl.tasks.metrics.dense_metrics import CosineSimilarity, MeanAngle, WithinAngle

        return {
            "cosine": CosineSimilarity(),
            "mean_angle": MeanAngle(),
            "within_11": WithinAngle(11.25),
            "within_22": WithinAngle(22.5),
            "within_30": WithinAngle(30.0),
        }

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the samples of a batch with a known pixel to metrics."""
        update_labelled(self, metrics, output, label)

    def predict(self, output: Tensor) -> Tensor:
        """Return unit vectors (B, 3, H, W)."""
        return unit(output)
