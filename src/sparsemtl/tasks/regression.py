"""Real values of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import Count, NonNegative, validated
from sparsemtl.tasks.likelihoods import Gaussian
from sparsemtl.tasks.task import Loss, Task, known_pairs

if TYPE_CHECKING:
    from torchmetrics import Metric


class Regression(Task):
    """Real values.

    Args:
        name: the task's name.
        dims: number of values per sample.
        criterion: `mse` (mean squared), `l1` (mean absolute) or `huber` (with delta 1) error.

    Labels have shape (B,) if dims is 1, or (B, dims); NaN is unknown. The loss and the metrics are
    means over all known values (R² a mean over the values' own).

    A loss of your own sees NaN where some values of a sample are unknown; a metric of your own gets only the samples
    all of whose values are known.
    """

    @validated
    def __init__(
        self,
        name: str,
        dims: Count = 1,
        *,
        criterion: Literal["mse", "l1", "huber"] = "mse",
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, weight=weight, target=target, loss=loss, metrics=metrics)
        self.dims = dims
        self.criterion = criterion

    @property
    def outputs(self) -> int:
        """One output a value."""
        return self.dims

    @property
    def likelihood(self) -> Gaussian:
        """Unit-variance normal."""
        return Gaussian()

    def labelled(self, target: Tensor) -> Tensor:
        """Samples with at least one known value."""
        return ~target.flatten(1).isnan().all(1) if target.ndim > 1 else ~target.isnan()

    def known(self, target: Tensor) -> Tensor:
        """Labels that are not NaN."""
        return ~target.isnan()

    def check_labels(self, target: Tensor) -> None:
        """One column a value; infinities are refused."""
        if target.ndim == 0 or target.shape[1:] not in ((self.dims,), () if self.dims == 1 else (self.dims,)):
            raise LabelError(
                f"task {self.name!r}: expected labels of shape (batch, {self.dims}), got {tuple(target.shape)}."
            )
        if target.is_floating_point() and bool(target.isinf().any()):
            raise LabelError(f"task {self.name!r}: a label is infinite. An unknown value is NaN.")

    def cast(self, target: Tensor) -> Tensor:
        """Floating labels of shape (B, dims)."""
        target = target if target.is_floating_point() else target.float()
        return target.unsqueeze(1) if target.ndim == 1 else target

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean error over all known values."""
        known = ~target.isnan()
        functions: dict[str, Any] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        output, target = known_pairs(output, target, known)
        terms = functions[self.criterion](output, target, reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """R² (mean over the values, so that tasks of any scale compare), MSE, its root and MAE."""
        from sparsemtl.tasks.value_metrics import KnownAbsoluteError, KnownR2, KnownSquaredError

        return {
            "r2": KnownR2(self.dims),
            "mse": KnownSquaredError(),
            "rmse": KnownSquaredError(squared=False),
            "mae": KnownAbsoluteError(),
        }

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add a batch's known values to metrics; to a user's own metrics, its fully labelled samples."""
        from sparsemtl.tasks.value_metrics import KnownValues

        label = self.labels(target)
        some, whole = self.labelled(label), ~label.isnan().any(1)
        for metric in metrics.values():
            known = some if isinstance(metric, KnownValues) else whole
            if bool(known.any()):
                values = output[known].float(), label[known].float()
                metric.update(*values if isinstance(metric, KnownValues) else (v.squeeze(1) for v in values))

    def predict(self, output: Tensor) -> Tensor:
        """Values (B, dims)."""
        return output
