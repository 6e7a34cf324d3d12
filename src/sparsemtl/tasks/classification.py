"""Classification: one class per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.registry.parameters import Share, validated
from sparsemtl.tasks.cross_entropy import check_class_weights, cross_entropy
from sparsemtl.tasks.likelihoods import Categorical
from sparsemtl.tasks.sample import SampleTask
from sparsemtl.tasks.task import TaskOptions, update_labelled

if TYPE_CHECKING:
    from torchmetrics import Metric


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
        label_smoothing: Annotated[Share, Doc("Share of a label that is spread over all classes, in [0, 1).")] = 0.0,
        class_weights: Annotated[
            Sequence[float] | None,
            Doc("Factor per class, at least 0, of the weighted mean that is the loss; None: equal factors."),
        ] = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(name, **options)
        self.numbered = isinstance(classes, int)
        self.class_names = [str(c) for c in (range(classes) if isinstance(classes, int) else classes)]
        if len(self.class_names) < 2:
            raise ParameterError(f"task {name!r}: a classification needs at least 2 classes, got {classes!r}.")
        check_class_weights(name, class_weights, len(self.class_names))
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """One logit per class."""
        return self.classes

    @property
    def likelihood(self) -> Categorical:
        """Softmax over the classes."""
        return Categorical(self.ignore_index)

    def known(self, target: Tensor) -> Tensor:
        """Return a mask of the labels that are neither the ignore index nor NaN."""
        if target.is_floating_point():
            return (target != self.ignore_index) & ~target.isnan()
        return target.long() != self.ignore_index

    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError unless labels are class indices or missing."""
        if target.ndim == 0 or target.shape[1:] not in ((), (1,)):
            raise LabelError(
                f"task {self.name!r}: expected class indices of shape (batch,), got labels of shape "
                f"{tuple(target.shape)}."
            )
        if not target.is_floating_point() and target.numel():
            least, largest = target.aminmax()
            if int(least) >= 0 and int(largest) < self.classes:
                return
        known = target[self.known(target)]
        wrong = known[(known < 0) | (known >= self.classes) | (known != known.long())]
        if wrong.numel():
            raise LabelError(
                f"task {self.name!r}: label {wrong[0].item()} is not one of the classes 0 .. {self.classes - 1}. "
                f"A sample without a label carries ignore_index={self.ignore_index} or NaN."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Return labels (B,) or (B, 1) as int64 (B,), with the ignore index in the place of NaN."""
        if target.ndim == 2 and target.shape[1] == 1:
            target = target.squeeze(1)
        if target.is_floating_point():
            target = target.nan_to_num(float(self.ignore_index))
        return target.long()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the known labels."""
        return cross_entropy(
            output,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )

    def default_metrics(self) -> dict[str, Metric]:
        """Return accuracy (micro), macro F1, precision and recall, and calibration error.

        Two classes add F1, precision, recall, AUROC and average precision of the second class, the positive one.
        """
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassF1Score,
            MulticlassPrecision,
            MulticlassRecall,
        )

        from sparsemtl.tasks import class_metrics as own

        metrics: dict[str, Metric] = {
            "accuracy": MulticlassAccuracy(self.classes, average="micro", validate_args=False),
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
        return metrics

    @property
    def joins_batches(self) -> bool:
        """True for the task's own metrics, which count predictions or keep them all."""
        return not self.has_given_metrics

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the labelled samples of a batch to metrics."""
        update_labelled(self, metrics, output, label)

    def predict(self, output: Tensor) -> Tensor:
        """Return class indices (B,)."""
        return output.argmax(1)
