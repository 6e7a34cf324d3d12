"""Tasks: what a head predicts, how wrong it is, and how that is measured.

A task is named, reads one target, and knows its loss, its likelihood and its metrics. A sample without a label for
a task (NaN, or the ignore index) adds exactly nothing to that task: not to its loss, its gradient or its metrics.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from sparsemtl.parameters import Count, NonNegative, Share, validated
from sparsemtl.registry import Registry

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[[Tensor, Tensor], Tensor]
"""A loss of the user's own: (outputs (N, ...), labels (N, ...)) of labelled samples only -> a scalar mean."""


class LinearHead(nn.Linear):
    """A linear layer on an encoder's features; feature maps (B, C, ...) are averaged over their positions first."""

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) or (B, F, H, W) to outputs (B, out_features)."""
        return F.linear(pooled(features), self.weight, self.bias)


class LazyLinearHead(nn.LazyLinear):
    """A `LinearHead` whose width is learned from the first batch, for encoders that do not tell theirs."""

    cls_to_become = LinearHead
    forward = LinearHead.forward  # type: ignore[assignment]

    def initialize_parameters(self, features: Tensor) -> None:
        """Take the width from the first features."""
        super().initialize_parameters(pooled(features))


def pooled(features: Tensor) -> Tensor:
    """Average features over their positions: (B, F, ...) -> (B, F)."""
    if not isinstance(features, Tensor) or features.ndim not in (2, 4, 5):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ParameterError(
            "The default heads read features of shape (batch, width) or maps (batch, channels, height, width); "
            f"the encoder gave {found}. Pass heads={{task: module}} that read what it gives."
        )
    return features.flatten(2).mean(2) if features.ndim > 2 else features


class Task(abc.ABC):
    """One thing to predict.

    Args:
        name: letters, digits, `_` and `-`; it names the head, the masks and the columns of every table.
        weight: factor of this task's loss, at least 0.
        target: key of this task's labels in a batch's targets; the task's name by default.
        loss: replaces the kind's own loss. It gets the labelled samples only and returns their mean.
        metrics: name -> torchmetrics metric, replaces the kind's own. The first is the primary one, by which
            models are chosen; every metric must say `higher_is_better`.
    """

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ParameterError(f"A task's name has letters, digits, '_' and '-' only, got {name!r}.")
        self.name = name
        self.weight = float(weight)
        self.target = target or name
        self._loss = loss
        self._metrics = dict(metrics) if metrics else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.outputs})"

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Width of the default head's output."""

    @property
    @abc.abstractmethod
    def likelihood(self) -> Likelihood:
        """The distribution of labels given outputs, under which Fisher information is taken."""

    @abc.abstractmethod
    def labelled(self, target: Tensor) -> Tensor:
        """Which samples have a label: bool, shape (B,)."""

    @abc.abstractmethod
    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The kind's own loss: mean over the labelled samples, zero if there is none."""

    @abc.abstractmethod
    def default_metrics(self) -> dict[str, Metric]:
        """The kind's own metrics, the primary one first."""

    @abc.abstractmethod
    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError if a label lies outside of what the task knows."""

    @abc.abstractmethod
    def cast(self, target: Tensor) -> Tensor:
        """Bring labels to the dtype and shape in which loss, likelihood and metrics read them."""

    @abc.abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """What the task answers, as a person reads it: a class, yes or no, a value."""

    def head(self, features: int | None = None) -> nn.Module:
        """Make the default head for an encoder of this width, or one that learns the width when first used."""
        return LazyLinearHead(self.outputs) if features is None else LinearHead(features, self.outputs)

    def labels(self, targets: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Pick this task's labels from a batch's targets, checked and cast.

        Raises:
            LabelError: if the targets lack this task's, or a label is not one of the task's.
        """
        if isinstance(targets, Mapping):
            if self.target not in targets:
                raise LabelError(
                    f"task {self.name!r}: the batch has no target {self.target!r}, only {sorted(targets)}."
                )
            target = targets[self.target]
        else:
            target = targets
        if not target.is_cuda:  # on a GPU the check would wait for the device at every step
            self.check_labels(target)
        return self.cast(target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the labelled samples of a batch, a scalar; exactly zero, with zero gradient, if none is.

        Args:
            output: what the head gave, shape (B, outputs).
            target: labels as they come from the data, shape (B,) or (B, outputs).
        """
        label = self.labels(target)
        if len(output) != len(label):
            raise LabelError(f"task {self.name!r}: {len(output)} outputs but {len(label)} labels.")
        if self._loss is None:
            return self.default_loss(output, label)
        known = self.labelled(label)
        return self._loss(output[known], label[known]) if bool(known.any()) else output[:0].sum()

    def metrics(self) -> dict[str, Metric]:
        """Fresh metrics by name, the primary one first."""
        from copy import deepcopy

        metrics = deepcopy(self._metrics) if self._metrics else self.default_metrics()
        for name, metric in metrics.items():
            if metric.higher_is_better is None:
                raise ParameterError(
                    f"task {self.name!r}: metric {name!r} does not say `higher_is_better`; set it to True or False."
                )
        return metrics

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add a batch to metrics; unlabelled samples are left out."""
        label = self.labels(target)
        known = self.labelled(label)
        if bool(known.any()):
            for metric in metrics.values():
                metric.update(output[known].float(), label[known])


class Classification(Task):
    """One class of several per sample.

    Args:
        name: the task's name.
        classes: number of classes (at least 2), or their names.
        ignore_index: the label of a sample that has none; NaN says the same where labels are floats.
        label_smoothing: in [0, 1).

    Labels have shape (B,) and lie in 0 .. classes - 1; outputs are logits (B, classes).
    """

    @validated
    def __init__(
        self,
        name: str,
        classes: int | Sequence[str],
        *,
        ignore_index: int = -100,
        label_smoothing: Share = 0.0,
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__(name, weight=weight, target=target, loss=loss, metrics=metrics)
        self.class_names = [str(c) for c in (range(classes) if isinstance(classes, int) else classes)]
        if len(self.class_names) < 2:
            raise ParameterError(f"task {name!r}: a classification needs at least 2 classes, got {classes!r}.")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return self.classes

    @property
    def likelihood(self) -> Categorical:
        """Softmax."""
        return Categorical(self.ignore_index)

    def labelled(self, target: Tensor) -> Tensor:
        """Samples whose label is neither the ignore index nor NaN."""
        known = target != self.ignore_index
        return known & ~target.isnan() if target.is_floating_point() else known

    def check_labels(self, target: Tensor) -> None:
        """Labels are class indices or missing."""
        known = target[self.labelled(target)]
        if known.numel() and (known.min() < 0 or known.max() >= self.classes):
            wrong = known[(known < 0) | (known >= self.classes)][0].item()
            raise LabelError(
                f"task {self.name!r}: label {wrong} is outside 0 .. {self.classes - 1}. "
                f"A sample without a label carries ignore_index={self.ignore_index} or NaN."
            )

    def cast(self, target: Tensor) -> Tensor:
        """Labels (B,) or (B, 1) as int64; NaN becomes the ignore index."""
        if target.ndim == 2 and target.shape[1] == 1:
            target = target.squeeze(1)
        if target.is_floating_point():
            target = target.nan_to_num(float(self.ignore_index))
        return target.long()

    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        total = F.cross_entropy(
            output,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / self.labelled(target).sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Accuracy (micro) and macro F1."""
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        return {
            "accuracy": MulticlassAccuracy(self.classes, average="micro", validate_args=False),
            "f1_macro": MulticlassF1Score(self.classes, average="macro", validate_args=False),
        }

    def predict(self, output: Tensor) -> Tensor:
        """Class indices (B,)."""
        return output.argmax(1)


class MultiLabel(Task):
    """Several yes/no labels per sample.

    Args:
        name: the task's name.
        labels: number of labels, or their names.

    Labels have shape (B, labels) and are 0, 1 or NaN (unknown), outputs are logits of the same shape. A sample's
    loss is the mean over its known labels' binary cross-entropies; a batch's is the mean over all known labels.
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
        metrics: Mapping[str, Metric] | None = None,
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
        terms = F.binary_cross_entropy_with_logits(output, target.nan_to_num(0.0), reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """Accuracy and macro F1, means over the labels."""
        from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

        options: dict[str, Any] = {"average": "macro", "ignore_index": -1, "validate_args": False}
        return {
            "accuracy": MultilabelAccuracy(self.outputs, **options),
            "f1_macro": MultilabelF1Score(self.outputs, **options),
        }

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add a batch to metrics; unknown labels become the index that torchmetrics ignores."""
        label = self.labels(target).nan_to_num(-1.0).long()
        for metric in metrics.values():
            metric.update(output.float(), label)

    def predict(self, output: Tensor) -> Tensor:
        """0 or 1 per label, shape (B, labels)."""
        return (output > 0).long()


class Regression(Task):
    """Real values.

    Args:
        name: the task's name.
        dims: number of values per sample.
        criterion: `mse` (mean squared), `l1` (mean absolute) or `huber` (with delta 1) error.

    Labels have shape (B,) if dims is 1, or (B, dims); NaN is unknown. The loss is the mean over all known values;
    metrics count samples all of whose values are known.
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
        metrics: Mapping[str, Metric] | None = None,
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

    def check_labels(self, target: Tensor) -> None:
        """One column a value; infinities are refused."""
        if target.shape[1:] not in ((self.dims,), () if self.dims == 1 else (self.dims,)):
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
        terms = functions[self.criterion](output, target.nan_to_num(0.0).to(output.dtype), reduction="none")
        return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)

    def default_metrics(self) -> dict[str, Metric]:
        """R² (mean over the values, so that tasks of any scale compare), MSE and MAE."""
        from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

        return {
            "r2": R2Score(multioutput="uniform_average"),
            "mse": MeanSquaredError(),
            "mae": MeanAbsoluteError(),
        }

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add the fully labelled samples of a batch to metrics."""
        label = self.labels(target)
        known = ~label.isnan().any(1)
        if bool(known.any()):
            for metric in metrics.values():
                metric.update(output[known].float().squeeze(1), label[known].float().squeeze(1))

    def predict(self, output: Tensor) -> Tensor:
        """Values (B, dims)."""
        return output


TASKS: Registry[Task] = Registry(
    "task", {"classification": Classification, "multi-label": MultiLabel, "regression": Regression}
)
