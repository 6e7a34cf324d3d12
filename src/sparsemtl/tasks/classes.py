"""Classes of a task: their names, the options of their loss, and the check of their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.errors import LabelError, ParameterError
from sparsemtl.registry.parameters import Default, NonNegative, Share
from sparsemtl.tasks.cross_entropy import check_class_weights, cross_entropy
from sparsemtl.tasks.task import TaskOptions


class ClassOptions(TaskOptions, total=False):
    """Options of tasks whose labels are classes."""

    label_smoothing: Annotated[Share, Default(0.0), Doc("Share of a label that is spread over all classes, in [0, 1).")]
    class_weights: Annotated[
        Sequence[float] | Literal["balanced"] | None,
        Default(None),
        Doc(
            "Factor per class, at least 0, of the weighted mean that is the loss; None: equal factors. `balanced`, in "
            "a configuration, takes them from the training labels (see `balanced_class_weights`)."
        ),
    ]
    focal_gamma: Annotated[
        NonNegative,
        Default(0.0),
        Doc(
            "Exponent of the factor (1 - p)^gamma of a label's cross-entropy, p being the probability of its class "
            "(focal loss, Lin et al. 2017); 0: no factor."
        ),
    ]


class Classes:
    """Classes of one task.

    Attributes:
        names: names of the classes; their numbers, if no names were given.
        ignore_index: label of what has none.

    Args:
        task: name of the task, for messages.
        classes: number of classes, or their names.
        ignore_index: label of what has none.
        options: options of the task.
        of: what a label belongs to, for messages: "sample", "pixel", "token".
    """

    def __init__(
        self, task: str, classes: int | Sequence[str], ignore_index: int, options: ClassOptions, *, of: str
    ) -> None:
        self.names = [str(c) for c in (range(classes) if isinstance(classes, int) else classes)]
        if len(self.names) < 2:
            raise ParameterError(f"task {task!r}: a classification needs at least 2 classes, got {classes!r}.")
        if options["class_weights"] == "balanced":
            raise ParameterError(
                f"task {task!r}: class_weights='balanced' is for configurations, which have the training labels. In "
                "Python, pass class_weights=sm.balanced_class_weights(labels, classes)."
            )
        check_class_weights(task, options["class_weights"], len(self.names))
        self.ignore_index = ignore_index
        self._task = task
        self._of = of
        self._options = options

    def __len__(self) -> int:
        return len(self.names)

    def loss(self, output: Tensor, target: Tensor, *, complete: bool = False) -> Tensor:
        """Return the mean cross-entropy of the known labels, with smoothing and factors as the options say.

        Args:
            output: logits (B, classes, ...).
            target: labels (B, ...).
            complete: all labels are known; False searches for unknown ones.
        """
        return cross_entropy(
            output,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self._options["label_smoothing"],
            class_weights=self.weights,
            focal_gamma=self._options["focal_gamma"],
            complete=complete,
        )

    @property
    def weights(self) -> Sequence[float] | None:
        """Factor per class, in the weighted mean that is the loss; None if all count alike."""
        return cast("Sequence[float] | None", self._options["class_weights"])

    def counts(self, label: Tensor, known: Tensor) -> dict[str, int]:
        """Return name of every class -> number of known labels of it.

        Args:
            label: class indices, int64.
            known: mask of the known labels, of the same shape.
        """
        counts = torch.bincount(label[known], minlength=len(self))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def check_ignore_index(self) -> None:
        """Raise a ParameterError if the ignore index is one of the classes."""
        if 0 <= self.ignore_index < len(self):
            raise ParameterError(f"task {self._task!r}: ignore_index={self.ignore_index} is one of the classes.")

    def check_labels(self, target: Tensor, known: Callable[[Tensor], Tensor]) -> bool | None:
        """Raise a LabelError unless known labels are classes; return True if this has shown that all are known.

        Args:
            target: labels.
            known: function of labels that returns the mask of the known ones; not called if all labels are classes.
        """
        classes = len(self.names)
        if not target.is_floating_point() and target.numel():
            least, largest = target.aminmax()
            if int(least) >= 0 and int(largest) < classes:
                return not 0 <= self.ignore_index < classes or None
        present = known(target)
        wrong = present & ((target < 0) | (target >= classes))
        if target.is_floating_point():
            wrong |= present & (target != target.trunc())
        if bool(wrong.any()):
            missing = f"ignore_index={self.ignore_index}" + (" or NaN" if self._of == "sample" else "")
            raise LabelError(
                f"task {self._task!r}: label {target[wrong][0].item()} is not one of the classes 0 .. "
                f"{classes - 1}. A {self._of} without a label carries {missing}."
            )
        return None


def balanced_class_weights(labels: Tensor, classes: int, ignore_index: int = -100) -> list[float]:
    """Return a factor per class, so that the classes count alike in a weighted loss: n / (classes * n of the class).

    It is scikit-learn's `balanced`. Every class needs a label.

    Args:
        labels: class indices of the training data, any shape; NaN is no label.
        classes: number of classes.
        ignore_index: value that is no label.

    Raises:
        LabelError: if a class has no label, or a label is none of the classes.

    Examples:
        >>> balanced_class_weights(torch.tensor([0, 0, 0, 1]), 2)
        [0.6666666666666666, 2.0]
    """
    known = labels != ignore_index
    if labels.is_floating_point():
        known &= ~labels.isnan()
    found = labels[known].long()
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < classes:
        raise LabelError(f"expected labels in 0 .. {classes - 1}, got {int(found.min())} .. {int(found.max())}.")
    counts = torch.bincount(found, minlength=classes).tolist()
    if 0 in counts:
        raise LabelError(
            f"class {counts.index(0)} has no label among {found.numel()}, so that no weight balances it. Pass "
            "class_weights as numbers, or leave the class out."
        )
    return [found.numel() / (classes * count) for count in counts]


def task_options(options: Any) -> TaskOptions:
    """Return the options that every kind of task has, without those of a kind."""
    return cast("TaskOptions", {name: options[name] for name in TaskOptions.__annotations__})
