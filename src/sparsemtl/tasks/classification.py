"""Classification: one class per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError
from sparsemtl.registry.parameters import validated
from sparsemtl.tasks.classes import Classes, ClassOptions, task_options
from sparsemtl.tasks.likelihoods import Categorical
from sparsemtl.tasks.metrics.compute_groups import group_metrics
from sparsemtl.tasks.sample import SampleTask
from sparsemtl.tasks.task import select_known

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class Classification(SampleTask):
    """One class of several per sample.

    Attributes:
        class_names: names of the classes; their numbers, if no names were given.
        numbered: True if no names were given.

    Labels have shape (B,) and lie in 0 .. classes - 1; outputs are logits (B, classes).
    """

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        classes: Annotated[int | Sequence[str], Doc("Number of classes, at least 2, or their names.")],
        *,
        ignore_index: Annotated[
            int, Doc("Label of samples without one; where labels are floats, NaN has the same meaning.")
        ] = -100,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(name, **task_options(options))
        self._classes = Classes(name, classes, ignore_index, options, of="sample")
        self.numbered = isinstance(classes, int)
        self.class_names = self._classes.names
        self.ignore_index = ignore_index
        self.label_smoothing = options["label_smoothing"]
        self.class_weights = self._classes.weights

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """One logit per class."""
        return self.classes

    @property
    def default_likelihood(self) -> Categorical:
        """Softmax over the classes."""
        return Categorical(self.ignore_index)

    def known(self, target: Tensor) -> Tensor:
        """Return a mask of the labels that are neither the ignore index nor NaN."""
        if target.is_floating_point():
            return (target != self.ignore_index) & ~target.isnan()
        return target.long() != self.ignore_index

    def class_counts(self, label: Tensor) -> dict[str, int]:
        """Return name of every class -> number of its known labels."""
        return self._classes.counts(label, self.known(label))

    def check_labels(self, target: Tensor) -> bool | None:
        """Raise a LabelError unless labels are class indices or missing."""
        if target.ndim == 0 or target.shape[1:] not in ((), (1,)):
            raise LabelError(
                f"task {self.name!r}: expected class indices of shape (batch,), got labels of shape "
                f"{tuple(target.shape)}."
            )
        return self._classes.check_labels(target, self.known)

    def cast(self, target: Tensor) -> Tensor:
        """Return labels (B,) or (B, 1) as int64 (B,), with the ignore index in the place of NaN."""
        if target.ndim == 2 and target.shape[1] == 1:
            target = target.squeeze(1)
        if target.is_floating_point():
            target = target.nan_to_num(float(self.ignore_index))
        return target.long()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the known labels."""
        return self._classes.loss(output, target)

    def complete_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the same of labels that are all known, without a search for others."""
        return self._classes.loss(output, target, complete=True)

    def default_metrics(self) -> dict[str, Metric]:
        """Return accuracy (micro), macro F1, precision and recall, and calibration error.

        Two classes add F1, precision, recall, AUROC and average precision of the second class, the positive one.
        """
        from torchmetrics.classification import MulticlassF1Score, MulticlassPrecision, MulticlassRecall

        from sparsemtl.tasks.metrics import class_metrics as own

        metrics: dict[str, Metric] = {
            "accuracy": own.Accuracy(self.classes),
            "f1_macro": MulticlassF1Score(self.classes, average="macro", validate_args=False),
            "precision_macro": MulticlassPrecision(self.classes, average="macro", validate_args=False),
            "recall_macro": MulticlassRecall(self.classes, average="macro", validate_args=False),
            "calibration_error": own.CalibrationError(self.classes, validate_args=False),
        }
        if self.classes == 2:
            metrics["f1"] = own.SecondClassF1(validate_args=False)
            metrics["precision"] = own.SecondClassPrecision(validate_args=False)
            metrics["recall"] = own.SecondClassRecall(validate_args=False)
            metrics["auroc"] = own.SecondClassAUROC(validate_args=False)
            metrics["average_precision"] = own.SecondClassAveragePrecision(validate_args=False)
            group_metrics(metrics, "f1", "precision", "recall")
        group_metrics(metrics, "accuracy", "f1_macro", "precision_macro", "recall_macro")
        return metrics

    @property
    def joins_batches(self) -> bool:
        """True for the task's own metrics, which count predictions or keep them all."""
        return not self.has_given_metrics

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the labelled samples of a batch to metrics."""
        from torchmetrics.classification import MulticlassStatScores

        output, label = select_known(self.known(label), output.float(), label)
        if len(label):
            classes = output.max(1).indices  # found once for all metrics of predicted classes
            for metric in metrics.values():
                reads_classes = isinstance(metric, MulticlassStatScores) and metric.top_k == 1
                metric.update(classes if reads_classes else output, label)

    def predict(self, output: Tensor) -> Tensor:
        """Return class indices (B,)."""
        return output.argmax(1)
