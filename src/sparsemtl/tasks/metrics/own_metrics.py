"""Metrics of the user's own that are plain functions of all outputs and labels of a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.metric import Metric
from torchmetrics.utilities import dim_zero_cat

from sparsemtl.errors import ParameterError

MetricFunction = Callable[[Tensor, Tensor], "Tensor | float"]
"""Outputs (N, ...) and labels (N, ...) of all known labels of a split -> one number."""


class FunctionMetric(Metric):
    """A function of the outputs and labels of the whole split, which need not be a mean over batches.

    Args:
        name: name of the metric, for messages.
        function: the function.
        higher_is_better: direction of improvement.
    """

    full_state_update = False
    #: True for metrics that are updated with rows of known labels, see `known_rows`.
    reads_rows = True
    outputs: list[Tensor]
    labels: list[Tensor]

    def __init__(self, name: str, function: MetricFunction, *, higher_is_better: bool | None) -> None:
        super().__init__()
        self.name = name
        self.function = function
        set_direction(self, higher_is_better)
        self.add_state("outputs", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, output: Tensor, label: Tensor) -> None:
        """Keep outputs (N, ...) and labels (N, ...) of a batch."""
        self.outputs.append(output.detach())
        self.labels.append(label)

    def compute(self) -> Tensor:
        """Return the function's value, a scalar.

        Raises:
            ParameterError: if the function returns something other than a number.
        """
        if not self.outputs:
            raise ValueError("no label is known.")
        try:
            outputs, labels = dim_zero_cat(self.outputs), dim_zero_cat(self.labels)
        except RuntimeError as error:
            shapes = sorted({tuple(output.shape[1:]) for output in self.outputs})
            raise ParameterError(
                f"metric {self.name!r}: its function reads a whole split, whose batches have rows of different shapes "
                f"{shapes}. Write a torchmetrics metric, which reads one batch at a time."
            ) from error
        with torch.no_grad():
            found: Any = self.function(outputs, labels)
        try:
            return torch.as_tensor(float(found))
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ParameterError(f"metric {self.name!r}: its function must return one number, got {kind}.") from error


def set_direction(metric: Metric, higher_is_better: bool | None) -> None:
    """Set the direction of one metric, which torchmetrics keeps per class."""
    metric.__dict__["higher_is_better"] = higher_is_better


class MeanLoss(Metric):
    """Mean of a loss over batches, each weighted by its labelled samples.

    Args:
        loss: outputs (N, ...) and labels (N, ...) -> scalar.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, loss: MetricFunction) -> None:
        super().__init__()
        self.loss = loss
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Tensor, label: Tensor) -> None:
        """Add a batch of labelled samples."""
        self.total += len(label) * float(self.loss(output, label))
        self.count += len(label)

    def compute(self) -> Tensor:
        """Return the mean, a scalar."""
        return self.total / self.count
