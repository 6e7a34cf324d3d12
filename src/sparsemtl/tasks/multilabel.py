"""Multi-label classification: several yes/no labels per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.registry.parameters import NonNegative, validated
from sparsemtl.tasks.likelihoods import Bernoulli
from sparsemtl.tasks.metrics.compute_groups import group_metrics
from sparsemtl.tasks.sample import SampleTask
from sparsemtl.tasks.task import TaskOptions, known_pairs, select_known

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class MultiLabel(SampleTask):
    """Several yes/no labels per sample.

    Labels have shape (B, labels) and are 0, 1 or NaN (unknown), outputs are logits of the same shape. The loss of a
    batch is the mean of the binary cross-entropies of all its known labels.

    Where only some labels of a sample are known, the others are NaN for a loss of your own and -1 for a metric of your
    own (give it `ignore_index=-1`).
    """

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        labels: Annotated[int | Sequence[str], Doc("Number of labels, at least 1, or their names.")],
        *,
        pos_weight: Annotated[
            Sequence[float] | None,
            Doc("Factor per label, above 0, of the loss of its yes answers, as in torch's BCEWithLogitsLoss; None: 1."),
        ] = None,
        focal_gamma: Annotated[
            NonNegative,
            Doc(
                "Exponent of the factor (1 - p)^gamma of a label's cross-entropy, p being the probability of the right "
                "answer (focal loss, Lin et al. 2017); 0: no factor."
            ),
        ] = 0.0,
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(name, **options)
        self.label_names = [str(c) for c in (range(labels) if isinstance(labels, int) else labels)]
        if not self.label_names:
            raise ParameterError(f"task {name!r}: a multi-label task needs at least 1 label, got {labels!r}.")
        if pos_weight is not None and not (len(pos_weight) == self.outputs and all(0 < w < inf for w in pos_weight)):
            raise ParameterError(
                f"task {name!r}: `pos_weight` must be {self.outputs} finite numbers above 0, one per label, got "
                f"{list(pos_weight)!r}."
            )
        self.pos_weight = pos_weight
        self.focal_gamma = focal_gamma

    @property
    def outputs(self) -> int:
        """One logit per label."""
        return len(self.label_names)

    @property
    def default_likelihood(self) -> Bernoulli:
        """Independent Bernoulli distributions."""
        return Bernoulli()

    def known(self, target: Tensor) -> Tensor:
        """Return a mask of the labels that are not NaN."""
        return ~target.isnan()

    def class_counts(self, label: Tensor) -> dict[str, int]:
        """Return name of every label -> number of samples that have it."""
        return dict(zip(self.label_names, (label == 1).sum(0).tolist(), strict=True))

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless labels are 0, 1 or NaN, one column per label."""
        if target.ndim != 2 or target.shape[1] != self.outputs:
            raise LabelError(
                f"task {self.name!r}: expected labels of shape (batch, {self.outputs}), got {tuple(target.shape)}."
            )
        right = (target == 0) | (target == 1) | target.isnan()
        if not bool(right.all()):
            wrong = target[~right][0].item()
            raise LabelError(f"task {self.name!r}: labels must be 0, 1 or NaN (unknown), found {wrong}.")

    def cast(self, target: Tensor) -> Tensor:
        """Return labels as floats, in which NaN is unknown."""
        return target if target.is_floating_point() else target.float()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of the known labels."""
        known = ~target.isnan()
        output, target = known_pairs(output, target, known)
        factors = None if self.pos_weight is None else output.new_tensor(self.pos_weight)
        terms = F.binary_cross_entropy_with_logits(output, target, reduction="none", pos_weight=factors)
        if self.focal_gamma:  # of the wrong answer, the probability is the sigmoid of minus or plus the logit
            terms = torch.where(target > 0.5, -output, output).sigmoid() ** self.focal_gamma * terms
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Return accuracy, F1, precision and recall, means over the labels that are known of at least one sample."""
        from sparsemtl.tasks.metrics import label_metrics as own

        options: dict[str, Any] = {"average": "none", "ignore_index": own.UNKNOWN, "validate_args": False}
        metrics: dict[str, Metric] = {
            "accuracy": own.KnownLabelAccuracy(self.outputs, **options),
            "f1_macro": own.KnownLabelF1(self.outputs, **options),
            "precision_macro": own.KnownLabelPrecision(self.outputs, **options),
            "recall_macro": own.KnownLabelRecall(self.outputs, **options),
        }
        group_metrics(metrics, *metrics)
        return metrics

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add probabilities to metrics. Unknown labels of labelled samples become -1, which the metrics ignore."""
        from sparsemtl.tasks.metrics.label_metrics import UNKNOWN

        output = torch.where(label.isnan(), 0.0, output)  # a metric may look for NaN among all outputs
        output, label = select_known(self.labelled(label), output, label)
        if len(label):
            output, label = output.float().sigmoid(), label.nan_to_num(UNKNOWN).long()
            for metric in metrics.values():
                metric.update(output, label)

    def predict(self, output: Tensor) -> Tensor:
        """Return 0 or 1 per label, shape (B, labels)."""
        return (output > 0).long()
