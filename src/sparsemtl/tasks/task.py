"""What a task is: a name, a target, a head, a loss, a likelihood, metrics."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsemtl.errors import LabelError, ParameterError, unknown_name
from sparsemtl.heads.linear import LazyLinearHead, LinearHead
from sparsemtl.registry.parameters import NonNegative
from sparsemtl.tasks.forward_errors import PLAIN, explain_loss
from sparsemtl.tasks.likelihoods import Likelihood
from sparsemtl.tasks.torchmetrics_import import import_torchmetrics

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[[Tensor, Tensor], Tensor]
"""A loss of the user's own: (outputs (N, ...), labels (N, ...)) of labelled samples only -> a scalar mean."""


class Task(abc.ABC):
    """One thing to predict.

    Args:
        name: letters, digits, `_` and `-`; it names the head, the masks and the columns of every table.
        weight: factor of this task's loss, at least 0.
        target: key of this task's labels in a batch's targets; the task's name by default.
        loss: replaces the kind's own loss. It gets the labelled samples only and returns their mean.
        metrics: names of the kind's own metrics to measure, or name -> torchmetrics metric, which replaces them. The
            first is the primary one, by which models are chosen; every metric must say `higher_is_better`.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments, from which `with_parameters` makes the task anew."""
        task = super().__new__(cls)
        task._arguments = (args, kwargs)
        return task

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        target: str | None = None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | Sequence[str] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
            raise ParameterError(f"A task's name has letters, digits, '_' and '-' only, got {name!r}.")
        if hasattr(nn.ModuleDict(), name):
            raise ParameterError(
                f"A task cannot be named {name!r}: the torch module that holds the heads has an attribute of that "
                f"name. Choose another; target={name!r} keeps the labels' key."
            )
        _check_loss(name, loss)
        _check_metrics(name, metrics)
        self.name = name
        self.weight = float(weight)
        self.target = target or name
        self._loss = loss
        self._metrics = _chosen_metrics(name, metrics)
        #: Name of the metric by which models are chosen; the first one if None.
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
        """The distribution of labels given outputs, under which Fisher information is taken."""

    @abc.abstractmethod
    def labelled(self, target: Tensor) -> Tensor:
        """Which samples have a label: bool, shape (B,)."""

    def known(self, target: Tensor) -> Tensor:
        """Which labels a loss is the mean of: samples, or the known ones of a sample's values or pixels."""
        return self.labelled(target)

    def known_outputs(self, target: Tensor, output: Tensor) -> Tensor:
        """Return which outputs a known label speaks of: bool, broadcasts to the outputs (B, ...)."""
        known = self.known(target)
        return known.view(*known.shape, *[1] * (output.ndim - known.ndim))

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

    def head(self, features: int | None = None, stride: int | None = None) -> nn.Module:
        """Make the default head.

        Args:
            features: width of the encoder's features; if None, the head learns it when it is first used.
            stride: input pixels a side that one position of the encoder's maps covers; None if it gives no maps.
        """
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
        if not isinstance(target, Tensor):
            raise LabelError(f"task {self.name!r}: labels must be a tensor, got {type(target).__name__}.")
        if not target.is_cuda:  # on a GPU the check would wait for the device at every step
            self.check_labels(target)
        return self.cast(target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the labelled samples of a batch, a scalar; exactly zero, with zero gradient, if none is.

        Args:
            output: what the head gave, shape (B, outputs).
            target: labels as they come from the data, shape (B,) or (B, outputs).
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

    def check_output(self, output: Tensor, target: Tensor) -> None:
        """Refuse what would broadcast against the labels, such as one value a sample without its own dimension."""
        if output.shape[1:2] != (self.outputs,):
            raise ParameterError(
                f"task {self.name!r}: its head must give outputs of shape (batch, {self.outputs}), "
                f"got {tuple(output.shape)}."
            )

    def metrics(self) -> dict[str, Metric]:
        """Fresh metrics by name, the primary one first.

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
                    f"task {self.name!r}: metric {name!r} does not say `higher_is_better`; set it to True or False."
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
        """Return the task as its class makes it with some keyword parameters changed.

        Raises:
            ParameterError: if the class does not take such a value.
        """
        args, kwargs = self._arguments
        changed: Task = type(self)(*args, **{**kwargs, **parameters})
        return changed

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add a batch to metrics; unlabelled samples are left out."""
        label = self.labels(target)
        known = self.labelled(label)
        if bool(known.any()):
            for metric in metrics.values():
                metric.update(output[known].float(), label[known])


def _chosen_metrics(
    task: str, metrics: Mapping[str, Metric] | Sequence[str] | None
) -> dict[str, Metric] | list[str] | None:
    if not metrics:
        return None
    if isinstance(metrics, Mapping):
        return dict(metrics)
    listed = isinstance(metrics, Sequence) and not isinstance(metrics, str)
    if not listed or not all(isinstance(name, str) for name in metrics):
        raise ParameterError(
            f"task {task!r}: `metrics` must be a list of names of metrics, or a mapping of names to torchmetrics "
            f"metrics, got {metrics!r}."
        )
    return list(dict.fromkeys(metrics))


def known_pairs(output: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Bring outputs and labels to one dtype, both zero where the label is unknown, so that nothing reaches the loss.

    Args:
        output: (B, ...).
        target: labels of the same shape.
        known: bool, broadcasts to both.
    """
    output, target = in_one_dtype(output, target)
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
        return  # names of metrics, which are checked where they are taken
    for name, metric in metrics.items():
        if isinstance(metric, type):
            raise ParameterError(
                f"task {task!r}: metric {name!r} is the class {metric.__name__}; pass an instance of it."
            )
        if not all(hasattr(metric, part) for part in ("update", "compute", "higher_is_better")):
            raise ParameterError(
                f"task {task!r}: metric {name!r} must be a torchmetrics metric, got {type(metric).__name__}."
            )


def in_one_dtype(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Bring labels to the outputs' dtype, and both to at least float32: labels may not fit into half precision."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return output.to(dtype), target.to(dtype)
