"""Semantic segmentation: one class per pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import Tensor
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.registry.parameters import Natural, validated
from sparsemtl.tasks.classes import Classes, ClassOptions, task_options
from sparsemtl.tasks.dense import DenseTask
from sparsemtl.tasks.likelihoods import PositionCategorical
from sparsemtl.tasks.metrics.compute_groups import group_metrics
from sparsemtl.tasks.task import select_known

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class Segmentation(DenseTask):
    """Semantic segmentation: one class of several per pixel.

    Labels have shape (B, H, W) and lie in 0 .. classes - 1; outputs are logits (B, classes, H, W). The loss is the
    mean cross-entropy of all known pixels of a batch. Metrics: `miou` and `pixel_accuracy` from one confusion matrix
    of the whole split, and `iou_less_is_more`, the variant of that paper.
    """

    @validated
    def __init__(
        self,
        name: Annotated[str, Doc("Name of the task.")],
        classes: Annotated[int | Sequence[str], Doc("Number of classes, at least 2, or their names.")],
        *,
        ignore_index: Annotated[int, Doc("Label of pixels without one; none of the classes.")] = 255,
        background: Annotated[
            Natural | None, Doc('Index of a class that `miou` leaves out, such as "all else" beside one category.')
        ] = None,
        **options: Unpack[ClassOptions],
    ) -> None:
        super().__init__(name, **task_options(options))
        self._classes = Classes(name, classes, ignore_index, options, of="pixel")
        self._classes.check_ignore_index()
        self.class_names = self._classes.names
        self.class_weights = self._classes.weights
        if background is not None and background >= len(self.class_names):
            raise ParameterError(
                f"task {name!r}: `background` must be one of the classes 0 .. {len(self.class_names) - 1}, "
                f"got {background}."
            )
        self.ignore_index = ignore_index
        self.label_smoothing = options["label_smoothing"]
        self.background = background

    @property
    def outputs(self) -> int:
        """One logit per class."""
        return len(self.class_names)

    @property
    def default_likelihood(self) -> PositionCategorical:
        """Softmax per pixel."""
        return PositionCategorical(self.ignore_index)

    def known(self, target: Tensor) -> Tensor:
        """Return a mask (B, H, W) of the pixels whose label is not the ignore index."""
        return target != self.ignore_index

    def class_counts(self, label: Tensor) -> dict[str, int]:
        """Return name of every class -> number of its known labels."""
        return self._classes.counts(label, self.known(label))

    def check_labels(self, target: Tensor) -> bool | None:
        """Raise a LabelError unless labels are class indices or the ignore index."""
        if target.is_floating_point() or target.ndim not in (3, 4) or target.shape[1:-2] not in ((), (1,)):
            raise LabelError(
                f"task {self.name!r}: expected whole numbers of shape (batch, height, width), got {target.dtype} of "
                f"shape {tuple(target.shape)}."
            )
        return self._classes.check_labels(target, self.known)

    def cast(self, target: Tensor) -> Tensor:
        """Return labels (B, H, W) as int64."""
        return (target.squeeze(1) if target.ndim == 4 else target).long()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the known pixels."""
        return self._classes.loss(output, target)

    def complete_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the same of labels that are all known, without a search for others."""
        return self._classes.loss(output, target, complete=True)

    def default_metrics(self) -> dict[str, Metric]:
        """Return mean IoU, pixel accuracy, and the IoU of Less is More."""
        from sparsemtl.tasks.metrics.dense_metrics import IoULessIsMore, MeanIoU, PixelAccuracy

        metrics: dict[str, Metric] = {
            "miou": MeanIoU(self.outputs, ignore_index=self.ignore_index, background=self.background),
            "pixel_accuracy": PixelAccuracy(self.outputs, ignore_index=self.ignore_index),
            "iou_less_is_more": IoULessIsMore(ignore_index=self.ignore_index),
        }
        group_metrics(metrics, "miou", "pixel_accuracy")
        return metrics

    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add the samples of a batch with a known pixel to metrics."""
        from sparsemtl.tasks.metrics.dense_metrics import ReadsClasses

        output, label = select_known(self.labelled(label), output, label)
        if len(label):
            classes = output.argmax(1)
            for metric in metrics.values():
                metric.update(classes if isinstance(metric, ReadsClasses) else output.float(), label)

    def predict(self, output: Tensor) -> Tensor:
        """Return class indices (B, H, W)."""
        return output.argmax(1)
