"""Depth estimation: one distance per pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks.dense import DenseTask
from sparsemtl.tasks.likelihoods import PixelGaussian
from sparsemtl.tasks.task import TaskOptions, known_pairs, update_labelled

if TYPE_CHECKING:
    from torchmetrics.metric import Metric

_ERRORS: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss}


class Depth(DenseTask):
    """Depth estimation: one positive number per pixel.

    Labels have shape (B, H, W) or (B, 1, H, W), outputs (B, 1, H, W), both in any unit, or inverse depth; a label of 0
    or less, or NaN, is unknown. Metrics, over the known pixels of the whole split: `abs_err`, `rel_err`, `rmse`, and
    `mae_less_is_more`, the variant of that paper.
    """

    outputs = 1

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        *,
        criterion: Annotated[Literal["l1", "mse"], Doc("Error: mean absolute (`l1`) or mean squared (`mse`).")] = "l1",
        scale: Annotated[
            Literal["none", "image"],
            Doc(
                "Unit of the loss and the metrics: that of the data (`none`), or the largest known depth of each "
                "image, as in Less is More (`image`)."
            ),
        ] = "none",
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(name, **options)
        self.criterion = criterion
        self.scale = scale

    @property
    def default_likelihood(self) -> PixelGaussian:
        """Normal distribution of unit variance per pixel."""
        return PixelGaussian()

    def known(self, target: Tensor) -> Tensor:
        """Return a mask (B, H, W) of the pixels of positive depth."""
        return (target.squeeze(1) if target.ndim == 4 else target) > 0

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless there is one finite number, or NaN, per pixel."""
        if target.ndim not in (3, 4) or target.shape[1:-2] not in ((), (1,)):
            raise LabelError(
                f"task {self.name!r}: expected depth of shape (batch, height, width), got {tuple(target.shape)}."
            )
        if target.is_floating_point() and bool(target.isinf().any()):
            raise LabelError(
                f"task {self.name!r}: {int(target.isinf().sum())} of {target.numel()} depths in the batch are "
                "infinite. A pixel of unknown depth carries 0 or NaN."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Return labels as floats (B, 1, H, W), scaled, with 0 in the place of NaN. A second cast changes nothing."""
        target = target.nan_to_num(0.0, inf, -inf) if target.is_floating_point() else target.float()
        target = target.unsqueeze(1) if target.ndim == 3 else target
        return target if self.scale == "none" else target / _largest(target)

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean error of the known pixels."""
        known = target > 0
        terms = _ERRORS[self.criterion](*known_pairs(output, target, known), reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Return absolute and relative error, root mean square, and the error of Less is More."""
        from sparsemtl.tasks.metrics.dense_metrics import (
            AbsoluteError,
            DepthErrorLessIsMore,
            RelativeError,
            RootMeanSquare,
        )

        return {
            "abs_err": AbsoluteError(),
            "rel_err": RelativeError(),
            "rmse": RootMeanSquare(),
            "mae_less_is_more": DepthErrorLessIsMore(),
        }

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the samples of a batch with a known pixel to metrics."""
        update_labelled(self, metrics, output, label)

    def predict(self, output: Tensor) -> Tensor:
        """Return depth (B, 1, H, W)."""
        return output


def _largest(target: Tensor) -> Tensor:
    """Return the largest depth of every image, (B, 1, 1, 1); 1 where none is known."""
    largest = target.amax((1, 2, 3), keepdim=True)
    return torch.where(largest > 0, largest, 1)
