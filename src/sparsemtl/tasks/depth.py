"""A distance at every pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import NonNegative, validated
from sparsemtl.tasks.dense import DenseTask
from sparsemtl.tasks.likelihoods import PixelGaussian
from sparsemtl.tasks.task import Loss, known_pairs

if TYPE_CHECKING:
    from torchmetrics import Metric

ERRORS: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "mse": F.mse_loss}


class Depth(DenseTask):
    """Depth estimation: one positive number at every pixel.

    Args:
        name: the task's name.
        criterion: `l1` (mean absolute) or `mse` (mean squared) error.
        scale: `image` divides the depths of an image by its largest known one, as Less is More does; `none` leaves them
            in the data's unit. Loss and metrics are in what it gives.

    Labels have shape (B, H, W) or (B, 1, H, W), outputs (B, 1, H, W), both in any unit, or inverse depth; a label of 0
    or less is unknown. Metrics, over the known pixels of the whole split: `abs_err`, `rel_err`, `rmse`, and
    `mae_less_is_more`, that paper's own.
    """

    outputs = 1

    @validated
    def __init__(
        self,
        name: str,
        *,
        criterion: Literal["l1", "mse"] = "l1",
        scale: Literal["none", "image"] = "none",
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, weight=weight, target=target, loss=loss, metrics=metrics)
        self.criterion = criterion
        self.scale = scale

    @property
    def likelihood(self) -> PixelGaussian:
        """Unit-variance normal at every pixel."""
        return PixelGaussian()

    def known(self, target: Tensor) -> Tensor:
        """Pixels of positive depth."""
        return (target.squeeze(1) if target.ndim == 4 else target) > 0

    def check_labels(self, target: Tensor) -> None:
        """One number a pixel; NaN and infinities are refused."""
        if target.ndim not in (3, 4) or target.shape[1:-2] not in ((), (1,)):
            raise LabelError(
                f"task {self.name!r}: expected depth of shape (batch, height, width), got {tuple(target.shape)}."
            )
        if target.is_floating_point() and not bool(target.isfinite().all()):
            count = int((~target.isfinite()).sum())
            raise LabelError(
                f"task {self.name!r}: {count} of {target.numel()} depths in the batch are NaN or infinite. A pixel of "
                "unknown depth carries 0."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Floating labels (B, 1, H, W), scaled; to cast them again changes nothing."""
        target = target if target.is_floating_point() else target.float()
        target = target.unsqueeze(1) if target.ndim == 3 else target
        return target if self.scale == "none" else target / _largest(target)

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean error of the known pixels."""
        known = target > 0
        terms = ERRORS[self.criterion](*known_pairs(output, target, known), reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Absolute and relative error, root mean square, and the error of Less is More."""
        from sparsemtl.tasks.dense_metrics import AbsoluteError, DepthErrorLessIsMore, RelativeError, RootMeanSquare

        return {
            "abs_err": AbsoluteError(),
            "rel_err": RelativeError(),
            "rmse": RootMeanSquare(),
            "mae_less_is_more": DepthErrorLessIsMore(),
        }

    def predict(self, output: Tensor) -> Tensor:
        """Depth (B, 1, H, W)."""
        return output


def _largest(target: Tensor) -> Tensor:
    """Return the largest depth of every image, (B, 1, 1, 1); 1 where none is known."""
    largest = target.amax((1, 2, 3), keepdim=True)
    return torch.where(largest > 0, largest, 1)
