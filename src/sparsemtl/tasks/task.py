"""Base of tasks: a name, a target, a head, a loss, a likelihood and metrics."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError, unknown_name
from sparsemtl.registry.parameters import Default, NonNegative, validated
from sparsemtl.tasks.forward_errors import PLAIN, explain_loss
from sparsemtl.tasks.likelihoods import Likelihood
from sparsemtl.tasks.torchmetrics_import import import_torchmetrics

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of the user's own: outputs (N, ...) and labels (N, ...) of the labelled samples -> their mean, a scalar."""


class TaskOptions(TypedDict, total=False):
    """Options of every kind of task."""

    weight: Annotated[NonNegative, Default(1.0), Doc("Factor of the task's loss, at least 0.")]
    target: Annotated[
        str | None,
        Default(None),
        Doc("Key of the task's labels in the targets of a batch; by default the name of the task."),
    ]
    loss: Annotated[
        Loss | None,
        Default(None),
        Doc("Loss in place of the kind's own: a function of the outputs and labels of labelled samples, their mean."),
    ]
    metrics: Annotated[
        Mapping[str, Metric] | Sequence[str] | None,
        Default(None),
        Doc(
            "Names of the kind's own metrics to measure, or name -> torchmetrics metric to measure in their place. The "
            "first is the primary one, by which models are selected. Every metric needs `higher_is_better`."
        ),
    ]


class Task(abc.ABC):
    """Prediction of one target, with its loss, likelihood and metrics.

    Args:
        name: letters, digits, `_` and `-`. It names the head, the masks and the columns of every table.
        options: see `TaskOptions`.
    """

    output_axis: ClassVar[int] = 1
    """Axis of the outputs (B, ...) along which the values for one label lie, such as the logits of the classes."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments, from which `with_parameters` makes a task."""
        task = super().__new__(cls)
        task._arguments = (args, kwargs)
        return task

    @validated
    def __init__(self, name: str, **options: Unpack[TaskOptions]) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ParameterError(f"A task's name has letters, digits, '_' and '-' only, got {name!r}.")
        if hasattr(nn.ModuleDict(), name):
            raise ParameterError(
                f"A task cannot be named {name!r}: the torch module that holds the heads has an attribute of that "
                f"name. Choose another; target={name!r} keeps the labels' key."
            )
        _check_loss(name, options["loss"])
        _check_metrics(name, options["metrics"])
        self.name = name
        self.weight = float(options["weight"])
        self.target = options["target"] or name
        self._loss = options["loss"]
        self._metrics = _selected_metrics(options["metrics"])
        #: Name of the metric by which models are selected; the first one if None.
        self.primary: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.outputs})"

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Width of the default head's output."""

    @property
    @abc.abstractmethod
    def likelihood(self) -> Likelihood:
        """Distribution of labels given outputs, under which Fisher information is computed."""

    @abc.abstractmethod
    def known(self, target: Tensor) -> Tensor:
        """Return a mask of the known labels: bool, shape (B,), or (B, ...) for several values or pixels per sample."""

    def class_counts(self, label: Tensor) -> dict[str, int]:
        """Return name of every class -> number of its labels; empty for a task without classes.

        Args:
            label: labels that `labels` returned.
        """
        return {}

    def labelled(self, target: Tensor) -> Tensor:
        """Return a mask of the samples with at least one known label: bool, shape (B,)."""
        known = self.known(target)
        return known if known.ndim == 1 else known.flatten(1).any(1)

    def known_outputs(self, target: Tensor, output: Tensor) -> Tensor:
        """Return a mask of the outputs with a known label: bool, broadcasts to the outputs (B, ...)."""
        known = self.known(target)
        for _ in range(output.ndim - known.ndim):
            known = known.unsqueeze(self.output_axis)
        return known

    @abc.abstractmethod
    def default_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the known labels, zero if there is none."""

    @abc.abstractmethod
    def default_metrics(self) -> dict[str, Metric]:
        """Return the metrics of this kind of task by name, the primary one first."""

    @abc.abstractmethod
    def check_labels(self, target: Tensor) -> None:
        """Raise a LabelError if the labels have another shape, or a label is not one of the task's."""

    @abc.abstractmethod
    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Raise if the outputs have another shape than the task's, or broadcast against the labels."""

    @abc.abstractmethod
    def checked_update(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add a batch to metrics, without its unlabelled samples; labels are those that `labels` returned."""

    @abc.abstractmethod
    def cast(self, target: Tensor) -> Tensor:
        """Return labels in the dtype and shape that loss, likelihood and metrics read."""

    @abc.abstractmethod
    def predict(self, output: Tensor) -> Tensor:
        """Return predictions as a person reads them: a class, yes or no, a value."""

    @abc.abstractmethod
    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """Return a new default head.

        Args:
            features: width of the encoder's features; if None, the head takes it from the first batch.
            stride: input pixels per side of a position of the encoder's maps; None if there are no maps.
        """

    def labels(self, targets: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Return this task's labels of a batch, checked and cast.

        Raises:
            LabelError: if the targets lack the task's, or a label is not one of the task's.
        """
        if isinstance(targets, Mapping):
            if self.target not in targets:
                raise LabelError(
                    f"task {self.name!r}: the batch has no target {self.target!r}, only {sorted(targets)}."
                )
            target = targets[self.target]
        else:
            target = targets
        if not isinstance(target, Tensor):
            raise LabelError(f"task {self.name!r}: labels must be a tensor, got {type(target).__name__}.")
        if not target.is_cuda:  # on a GPU the check would wait for the device at every step
            self.check_labels(target)
        return self.cast(target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; zero, with zero gradient, if no sample is labelled.

        Args:
            output: outputs of the head, shape (B, outputs, ...).
            target: labels as in the data, shape (B, ...).
        """
        return self.checked_loss(output, self.labels(target))

    def checked_loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the loss for labels that `labels` returned, without a second check of them; see `loss`."""
        if len(output) != len(label):
            raise LabelError(f"task {self.name!r}: {len(output)} outputs but {len(label)} labels.")
        if self._loss is None:
            self.check_output(output, label)
            return self.default_loss(output, label)
        known = self.labelled(label)
        if not bool(known.any()):
            return output[:0].sum()
        output, label = output[known], label[known]
        try:
            loss = self._loss(output, label)
        except PLAIN as error:
            if type(error) not in PLAIN:
                raise
            raise explain_loss(self.name, error, output, label) from error
        if not isinstance(loss, Tensor):
            raise ParameterError(
                f"task {self.name!r}: its loss must return a tensor, got {type(loss).__name__}. Is it an instance?"
            )
        if loss.ndim:
            raise ParameterError(f"task {self.name!r}: its loss must be one number, got shape {tuple(loss.shape)}.")
        return loss

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add a batch to metrics, without its unlabelled samples.

        Args:
            metrics: what `metrics` returned.
            output: outputs of the head, shape (B, outputs, ...).
            target: labels as in the data, shape (B, ...).
        """
        self.checked_update(metrics, output, self.labels(target))

    @property
    def has_given_metrics(self) -> bool:
        """True if metric objects were given in place of the kind's own."""
        return isinstance(self._metrics, dict)

    @property
    def joins_batches(self) -> bool:
        """True if metrics of joined batches equal those of one batch after another, to the last bit."""
        return False

    def metrics(self) -> dict[str, Metric]:
        """Return new metrics by name, the primary one first.

        Raises:
            DependencyError: if torchmetrics cannot be imported.
            ParameterError: if a metric lacks its direction, or `primary` is none of them.
        """
        from copy import deepcopy

        import_torchmetrics()
        if isinstance(self._metrics, dict):
            metrics = deepcopy(self._metrics)
        else:
            metrics = self.default_metrics()
            metrics = {metric: self._own_metric(metric, metrics) for metric in self._metrics or metrics}
        for name, metric in metrics.items():
            if metric.higher_is_better is None:
                raise ParameterError(
                    f"task {self.name!r}: metric {name!r} has no `higher_is_better`. Set it to True or False."
                )
        if self.primary is None:
            return metrics
        if self.primary not in metrics:
            raise ParameterError(f"task {self.name!r}: {unknown_name('metric', self.primary, metrics)}")
        return {self.primary: metrics.pop(self.primary), **metrics}

    def _own_metric(self, name: str, metrics: Mapping[str, Metric]) -> Metric:
        if name not in metrics:
            raise ParameterError(f"task {self.name!r}: {unknown_name('metric', name, metrics)}")
        return metrics[name]

    def with_parameters(self, **parameters: Any) -> Task:
        """Return a task of the same class with some keyword parameters changed.

        Raises:
            ParameterError: if the class refuses a value.
        """
        args, kwargs = self._arguments
        changed: Task = type(self)(*args, **{**kwargs, **parameters})
        return changed


def _selected_metrics(metrics: Mapping[str, Metric] | Sequence[str] | None) -> dict[str, Metric] | list[str] | None:
    if not metrics:
        return None
    return dict(metrics) if isinstance(metrics, Mapping) else list(dict.fromkeys(metrics))


def update_labelled(task: Task, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
    """Add the labelled samples of a batch to metrics; labels are those that `Task.labels` returned."""
    output, label = select_known(task.labelled(label), output, label)
    if len(label):
        output = output.float()
        for metric in metrics.values():
            metric.update(output, label)


def select_known(known: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the entries of tensors along the first axis that a bool mask (B,) selects; no copies if it selects all."""
    return tensors if bool(known.all()) else tuple(tensor[known] for tensor in tensors)


def known_pairs(output: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and labels in one dtype, both zero where the label is unknown.

    Args:
        output: (B, ...).
        target: labels of the same shape.
        known: bool, broadcasts to both.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)  # labels may not fit into half precision
    output, target = output.to(dtype), target.to(dtype)
    return torch.where(known, output, 0.0), torch.where(known, target, 0.0)


def _check_loss(task: str, loss: object) -> None:
    if isinstance(loss, type):
        raise ParameterError(
            f"task {task!r}: `loss` is the class {loss.__name__}; pass an instance, {loss.__name__}()."
        )
    if loss is not None and not callable(loss):
        raise ParameterError(
            f"task {task!r}: `loss` must be a function (outputs, labels) -> scalar, got {type(loss).__name__}."
        )


def _check_metrics(task: str, metrics: object) -> None:
    if not isinstance(metrics, Mapping):
        return  # names, which `metrics()` checks
    for name, metric in metrics.items():
        if isinstance(metric, type):
            raise ParameterError(
                f"task {task!r}: metric {name!r} is the class {metric.__name__}; pass an instance of it."
            )
        if not all(hasattr(metric, part) for part in ("update", "compute", "higher_is_better")):
            raise ParameterError(
                f"task {task!r}: metric {name!r} must be a torchmetrics metric, got {type(metric).__name__}."
            )
