"""Custom task: outputs, labels and a loss of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.heads.linear import LazyLinearHead, LinearHead
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.tasks.own_likelihoods import LossLikelihood
from sparsemtl.tasks.task import Task, TaskOptions, update_labelled

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class CustomTask(Task):
    """Task of no other kind: a loss of your own, on outputs and labels of any shape whose first axis is the batch.

    A sample all of whose labels are missing (NaN, or the ignore index of whole numbers) has no part in the loss and the
    metrics. Where only some are missing, the loss and the metrics receive them as they are. Without metrics of your
    own, models are selected by `batch_loss`, the mean of the loss over batches.

    Fisher information is that of `likelihood`; without one, that of the loss (see `likelihood`).

    Examples:
        >>> def ranking(output, label):
        ...     gaps, wanted = output - output.T, (label[:, None] - label[None]).sign()
        ...     return torch.relu(1 - wanted * gaps)[wanted != 0].mean()
        >>> task = CustomTask("relevance", outputs=1, loss=ranking)
        >>> round(task.loss(torch.tensor([[0.0], [0.5]]), torch.tensor([1.0, 2.0])).item(), 2)
        0.5
    """

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        outputs: Annotated[Count, Doc("Width of the default head's output.")],
        *,
        ignore_index: Annotated[int | None, Doc("Whole-number label that is missing; None: none is.")] = None,
        predict: Annotated[
            Callable[[Tensor], Tensor] | None,
            Doc("Outputs (B, ...) -> predictions (B, ...) as a person reads them; None: the outputs."),
        ] = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(name, **options)
        if options["loss"] is None:
            raise ParameterError(f"task {name!r}: a CustomTask needs `loss`, a function (outputs, labels) -> scalar.")
        self._outputs = outputs
        self._predict = predict
        self.ignore_index = ignore_index

    @property
    def outputs(self) -> int:
        """Width of the default head's output."""
        return self._outputs

    @property
    def default_likelihood(self) -> LossLikelihood:
        """The loss, in place of a distribution."""
        return self.loss_likelihood()

    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """Return a linear head, which averages feature maps over their positions; see `Task.head`."""
        return LazyLinearHead(self.outputs) if features is None else LinearHead(features, self.outputs)

    def known(self, target: Tensor) -> Tensor:
        """Return a mask (B,) of the samples with at least one label."""
        if target.is_floating_point():
            known = ~target.isnan()
        elif self.ignore_index is not None:
            known = target != self.ignore_index
        else:
            known = torch.ones_like(target, dtype=torch.bool)
        return known if known.ndim == 1 else known.flatten(1).any(1)

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless labels have a first axis, the batch."""
        if target.ndim == 0:
            raise LabelError(f"task {self.name!r}: expected labels of shape (batch, ...), got a single number.")

    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Accept outputs of any shape: the loss reads them."""

    def cast(self, target: Tensor) -> Tensor:
        """Return labels as they are."""
        return target

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Raise: the loss is always the user's own."""
        raise ParameterError(f"task {self.name!r}: a CustomTask has no loss but its own.")

    def default_metrics(self) -> dict[str, Metric]:
        """Return the mean of the loss over batches."""
        from sparsemtl.tasks.metrics.own_metrics import MeanLoss

        return {"batch_loss": MeanLoss(self.checked_loss)}

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the labelled samples of a batch to metrics."""
        update_labelled(self, metrics, output, label)

    def predict(self, output: Tensor) -> Tensor:
        """Return predictions by the function that was given, or the outputs."""
        found: Any = output if self._predict is None else self._predict(output)
        return found  # type: ignore[no-any-return]
