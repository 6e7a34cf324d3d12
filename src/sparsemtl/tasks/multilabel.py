"""Several yes/no labels a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.registry.parameters import NonNegative, validated
from sparsemtl.tasks.likelihoods import Bernoulli
from sparsemtl.tasks.task import Loss, Task, known_pairs

if TYPE_CHECKING:
    from torchmetrics import Metric


class MultiLabel(Task):
    """Several yes/no labels per sample.

    Args:
        name: the task's name.
        labels: number of labels, or their names.

    Labels have shape (B, labels) and are 0, 1 or NaN (unknown), outputs are logits of the same shape. The loss of a
    batch is the mean of the binary cross-entropies of all its known labels.

    A loss of your own sees NaN, and a metric of your own -1 (give it `ignore_index=-1`), where a sample has some
    known labels and others unknown.
    """

    @validated
    def __init__(
        self,
        name: str,
        labels: int | Sequence[str],
        *,
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, weight=weight, target=target, loss=loss, metrics=metrics)
        self.label_names = [str(c) for c in (range(labels) if isinstance(labels, int) else labels)]
        if not self.label_names:
            raise ParameterError(f"task {name!r}: a multi-label task needs at least 1 label, got {labels!r}.")

    @property
    def outputs(self) -> int:
        """One logit a label."""
        return len(self.label_names)

    @property
    def likelihood(self) -> Bernoulli:
        """Independent Bernoullis."""
        return Bernoulli()

    def labelled(self, target: Tensor) -> Tensor:
        """Samples with at least one known label."""
        return ~target.isnan().all(1)

    def known(self, target: Tensor) -> Tensor:
        """Labels that are not NaN."""
        return ~target.isnan()

    def check_labels(self, target: Tensor) -> None:
        """Labels are 0, 1 or NaN, one column each."""
        if target.ndim != 2 or target.shape[1] != self.outputs:
            raise LabelError(
                f"task {self.name!r}: expected labels of shape (batch, {self.outputs}), got {tuple(target.shape)}."
            )
        wrong = target[~((target == 0) | (target == 1) | target.isnan())]
        if wrong.numel():
            raise LabelError(f"task {self.name!r}: labels must be 0, 1 or NaN (unknown), found {wrong[0].item()}.")

    def cast(self, target: Tensor) -> Tensor:
        """Floating labels, so that NaN can stand for unknown."""
        return target if target.is_floating_point() else target.float()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy, mean over all known labels."""
        known = ~target.isnan()
        output, target = known_pairs(output, target, known)
        terms = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Accuracy, F1, precision and recall, means over the labels that are known of at least one sample."""
        from sparsemtl.tasks import label_metrics as own

        options: dict[str, Any] = {"average": "none", "ignore_index": own.UNKNOWN, "validate_args": False}
        return {
            "accuracy": own.KnownLabelAccuracy(self.outputs, **options),
            "f1_macro": own.KnownLabelF1(self.outputs, **options),
            "precision_macro": own.KnownLabelPrecision(self.outputs, **options),
            "recall_macro": own.KnownLabelRecall(self.outputs, **options),
        }

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add probabilities to metrics; unknown labels of labelled samples become -1, which the metrics ignore."""
        from sparsemtl.tasks.label_metrics import UNKNOWN

        label = self.labels(target)
        known = self.labelled(label)
        if bool(known.any()):
            output = torch.where(label.isnan(), 0.0, output)  # a metric may look for NaN among all outputs
            for metric in metrics.values():
                metric.update(output[known].float().sigmoid(), label[known].nan_to_num(UNKNOWN).long())

    def predict(self, output: Tensor) -> Tensor:
        """0 or 1 per label, shape (B, labels)."""
        return (output > 0).long()
