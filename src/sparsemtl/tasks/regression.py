"""Regression: real values per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.tasks.likelihoods import Gaussian
from sparsemtl.tasks.metrics.compute_groups import group_metrics
from sparsemtl.tasks.sample import SampleTask
from sparsemtl.tasks.task import TaskOptions, known_pairs, select_known

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class Regression(SampleTask):
    """One or more real values per sample.

    Labels have shape (B,) if `dims` is 1, or (B, dims); NaN is unknown. The loss and the metrics are means over all
    known values; R² is computed per value, then averaged.

    Where only some values of a sample are known, the others are NaN for a loss of your own. A metric of your own gets
    the samples whose values are all known.
    """

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        dims: Annotated[Count, Doc("Number of values per sample.")] = 1,
        *,
        criterion: Annotated[
            Literal["mse", "l1", "huber"],
            Doc("Error: mean squared (`mse`), mean absolute (`l1`) or Huber's with delta 1 (`huber`)."),
        ] = "mse",
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(name, **options)
        self.dims = dims
        self.criterion = criterion

    @property
    def outputs(self) -> int:
        """One output per value."""
        return self.dims

    @property
    def default_likelihood(self) -> Gaussian:
        """Normal distribution of unit variance."""
        return Gaussian()

    def known(self, target: Tensor) -> Tensor:
        """Return a mask of the values that are not NaN."""
        return ~target.isnan()

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless there is one finite number, or NaN, per value."""
        if target.ndim == 0 or target.shape[1:] not in ((self.dims,), () if self.dims == 1 else (self.dims,)):
            raise LabelError(
                f"task {self.name!r}: expected labels of shape (batch, {self.dims}), got {tuple(target.shape)}."
            )
        if target.is_floating_point() and bool(target.isinf().any()):
            raise LabelError(f"task {self.name!r}: a label is infinite. An unknown value is NaN.")

    def cast(self, target: Tensor) -> Tensor:
        """Return labels as floats of shape (B, dims)."""
        target = target if target.is_floating_point() else target.float()
        return target.unsqueeze(1) if target.ndim == 1 else target

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean error of the known values."""
        known = ~target.isnan()
        functions: dict[str, Any] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        output, target = known_pairs(output, target, known)
        terms = functions[self.criterion](output, target, reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Return R², which compares tasks of any scale, MSE, its root and MAE."""
        from sparsemtl.tasks.metrics.value_metrics import KnownAbsoluteError, KnownR2, KnownSquaredError

        metrics: dict[str, Metric] = {
            "r2": KnownR2(self.dims),
            "mse": KnownSquaredError(),
            "rmse": KnownSquaredError(squared=False),
            "mae": KnownAbsoluteError(),
        }
        group_metrics(metrics, "mse", "rmse")
        return metrics

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the known values of a batch to metrics; to the user's own metrics, its fully labelled samples."""
        from sparsemtl.tasks.metrics.value_metrics import KnownValues

        unknown = label.isnan()
        some, whole = (select_known(~u, output.float(), label.float()) for u in (unknown.all(1), unknown.any(1)))
        for metric in metrics.values():
            values = some if isinstance(metric, KnownValues) else whole
            if len(values[1]):
                metric.update(*values if isinstance(metric, KnownValues) else (v.squeeze(1) for v in values))

    def predict(self, output: Tensor) -> Tensor:
        """Return values (B, dims)."""
        return output
