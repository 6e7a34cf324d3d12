"""Base of tasks: a name, a target, a head, a loss, a likelihood and metrics."""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.errors import LabelError, ParameterError, unknown_name
from sparsemtl.registry.parameters import Default, NonNegative, validated
from sparsemtl.tasks.likelihoods import Likelihood
from sparsemtl.tasks.metrics.given_metrics import METRICS, check_metrics, known_rows, made_metric, selected_metrics
from sparsemtl.tasks.metrics.torchmetrics_import import import_torchmetrics
from sparsemtl.tasks.own_likelihoods import DistributionLikelihood, DistributionOf, LossLikelihood
from sparsemtl.tasks.own_losses import Loss, OwnLosses
from sparsemtl.tasks.targets import labels_among, target_keys

if TYPE_CHECKING:
    from torchmetrics.metric import Metric


class TaskOptions(TypedDict, total=False):
    """Options of every kind of task."""

    weight: Annotated[NonNegative, Default(1.0), Doc("Factor of the task's loss, at least 0.")]
    target: Annotated[
        str | Sequence[str] | None,
        Default(None),
        Doc(
            "Key of the task's labels in the targets of a batch; by default the name of the task. Several keys are "
            "joined along axis 1, (B,) being a column; the batch may hold them under the task's name."
        ),
    ]
    loss: Annotated[
        Loss | Mapping[str, Any] | None,
        Default(None),
        Doc(
            "Loss in place of the kind's own: a function or module of the outputs and labels of labelled samples, that "
            "returns their mean, or a loss per sample or label. Parameters and buffers of a module are trained, moved "
            "and saved with the model. Several losses by name are added; each is logged as `loss_<name>`."
        ),
    ]
    loss_weights: Annotated[
        Mapping[str, NonNegative] | None, Default(None), Doc("Factor per named loss, at least 0; 1 by default.")
    ]
    likelihood: Annotated[
        Likelihood | DistributionOf | Literal["loss"] | None,
        Default(None),
        Doc(
            "Distribution of labels in place of the kind's own, for Fisher information: a function of the outputs that "
            "returns a torch.distributions.Distribution, or a `Likelihood`. `loss`: the gradient of the loss in place "
            "of that of a log-probability, at the labels of the data (empirical Fisher information). With a loss of "
            "your own and outputs that mean something else than the kind's, pass one of them."
        ),
    ]
    metrics: Annotated[
        Mapping[str, Any] | Sequence[str] | None,
        Default(None),
        Doc(
            "Names of metrics to measure, of the kind's own and of `METRICS` (plugins); or name -> what to measure in "
            "their place: a torchmetrics metric, a function of outputs and labels, or the name of one of the kind's "
            "own. A function receives all known labels of a split at once, and the head's outputs for them; of maps "
            "and sequences, those of known pixels (N, C) and tokens. The first is the primary one, by which models are "
            "selected."
        ),
    ]
    higher_is_better: Annotated[
        Mapping[str, bool] | None,
        Default(None),
        Doc("Direction per metric: of every function, and of torchmetrics metrics that leave it undefined."),
    ]


class Task(abc.ABC):
    """Prediction of one target, with its loss, likelihood and metrics.

    Args:
        name: letters, digits, `_` and `-`. It names the head, the masks and the columns of every table.
        options: see `TaskOptions`.
    """

    output_axis: ClassVar[int] = 1
    """Axis of the outputs (B, ...) along which the values for one label lie, such as the logits of the classes."""

    class_weights: Sequence[float] | None = None
    """Factors of classes in the weighted mean that is the loss; None where all labels count alike."""

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
        check_metrics(name, options["metrics"], options["higher_is_better"] or {})
        self.name = name
        self.weight = float(options["weight"])
        #: Keys of the labels in the targets of a batch.
        self.targets = target_keys(name, options["target"])
        self.target = self.targets[0] if len(self.targets) == 1 else name
        self._losses = _own_losses(name, options["loss"], options["loss_weights"])
        self._likelihood = _checked_likelihood(name, options["likelihood"])
        self._metrics = selected_metrics(options["metrics"])
        self._directions = dict(options["higher_is_better"] or {})
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
    def default_likelihood(self) -> Likelihood:
        """Distribution of labels given outputs, for outputs of this kind of task."""

    @property
    def likelihood(self) -> Likelihood:
        """Distribution of labels given outputs, under which Fisher information is computed."""
        own = self._likelihood
        if own is None:
            return self.default_likelihood
        if own == "loss":
            return self.loss_likelihood()
        return own if isinstance(own, Likelihood) else DistributionLikelihood(self.name, own, self.known)

    @property
    def has_own_likelihood(self) -> bool:
        """True if a likelihood was given in place of the kind's own."""
        return self._likelihood is not None

    def loss_likelihood(self) -> LossLikelihood:
        """Return the gradient of the task's loss in place of that of a log-probability."""
        return LossLikelihood(self.name, self.checked_loss, self.known)

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

    def complete_loss(self, output: Tensor, target: Tensor) -> Tensor | None:
        """Return `default_loss` of labels that are all known, without the search for others; None if it has none."""
        return None

    @abc.abstractmethod
    def default_metrics(self) -> dict[str, Metric]:
        """Return the metrics of this kind of task by name, the primary one first."""

    @abc.abstractmethod
    def check_labels(self, target: Tensor) -> bool | None:
        """Raise a LabelError if the labels have another shape, or a label is not one of the task's.

        May return True if the check has shown that there are labels and all are known, which saves a search for others.
        """

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
        return self._read(targets)[0]

    def complete_labels(self, targets: Mapping[str, Tensor] | Tensor) -> tuple[Tensor, bool]:
        """Return labels as `labels`, and True if there are some and all are known."""
        label, complete = self._read(targets)
        return label, complete or (label.shape[0] > 0 and bool(self.known(label).all()))

    def _read(self, targets: Mapping[str, Tensor] | Tensor) -> tuple[Tensor, bool]:
        """Return checked labels, and True if the check has shown that all are known."""
        target = labels_among(self, targets) if isinstance(targets, Mapping) else targets
        if not isinstance(target, Tensor):
            raise LabelError(
                f"task {self.name!r}: labels must be a tensor, got {type(target).__name__}. Pass "
                "torch.as_tensor(labels); classes are numbers from 0 on, not their names."
            )
        # on a GPU the check would wait for the device at every step
        complete = None if target.is_cuda else self.check_labels(target)
        return self.cast(target), bool(complete)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; zero, with zero gradient, if no sample is labelled.

        Args:
            output: outputs of the head, shape (B, outputs, ...).
            target: labels as in the data, shape (B, ...).
        """
        return self.checked_loss(output, self.labels(target))

    def checked_loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Return the loss for labels that `labels` returned, without a second check of them; see `loss`."""
        return self.checked_losses(output, label)["loss"]

    def checked_losses(self, output: Tensor, label: Tensor, *, complete: bool = False) -> dict[str, Tensor]:
        """Return the loss as `loss`, and each of several losses as `loss_<name>`, not weighted.

        Args:
            output: outputs of the head, shape (B, outputs, ...).
            label: labels that `labels` returned.
            complete: all labels are known; False searches for unknown ones.
        """
        if output.shape[0] != label.shape[0]:
            raise LabelError(f"task {self.name!r}: {len(output)} outputs but {len(label)} labels.")
        if self._losses is None:
            self.check_output(output, label)
            loss = self.complete_loss(output, label) if complete else None
            return {"loss": self.default_loss(output, label) if loss is None else loss}
        known = self.labelled(label)
        if not bool(known.any()):
            return dict.fromkeys(self.loss_names, output[:0].sum())
        means = self._losses.means(self, output[known], label[known])
        terms = {f"loss_{name}": means[name] for name in self._losses.names}
        return {"loss": self._losses.total(means), **terms}

    def label_weight(self, label: Tensor) -> float:
        """Return the denominator of the mean loss: the number of known labels, times their weights if they have any.

        Processes weigh the means of their batches by it. A loss that is no mean over known labels has no such number.

        Args:
            label: labels that `labels` returned.
        """
        known = self.known(label)
        if self.class_weights is None:
            return float(known.sum())
        return float(torch.as_tensor(self.class_weights, device=label.device)[label[known]].sum())

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names under which losses are logged: `loss`, and `loss_<name>` of each of several losses."""
        return ("loss", *(f"loss_{name}" for name in (self._losses.names if self._losses else ())))

    def loss_modules(self) -> nn.Module | None:
        """Return the losses that are modules with parameters or buffers, which a model holds; None without."""
        return None if self._losses is None else self._losses.modules()

    def update(self, metrics: Mapping[str, Metric], output: Tensor, target: Tensor) -> None:
        """Add a batch to metrics, without its unlabelled samples.

        Args:
            metrics: what `metrics` returned.
            output: outputs of the head, shape (B, outputs, ...).
            target: labels as in the data, shape (B, ...).
        """
        self.update_metrics(metrics, output, self.labels(target))

    def update_metrics(self, metrics: Mapping[str, Metric], output: Tensor, label: Tensor) -> None:
        """Add a batch to metrics, functions of the user's own among them; labels are those that `labels` returned."""
        functions = {name: metric for name, metric in metrics.items() if getattr(metric, "reads_rows", False)}
        self.checked_update({name: metrics[name] for name in metrics if name not in functions}, output, label)
        if functions:
            output, label = known_rows(self, output, label)
            for metric in functions.values():
                metric.update(output.float(), label)

    @property
    def has_given_metrics(self) -> bool:
        """True if metrics were given that are not the kind's own: objects, functions, or names of plugins' metrics."""
        return isinstance(self._metrics, dict) or any(name in METRICS for name in self._metrics or ())

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
        import_torchmetrics()
        metrics = self._given_metrics(self._metrics) if isinstance(self._metrics, dict) else self._named_metrics()
        for name, metric in metrics.items():
            self._check_metric(name, metric)
        if self.primary is None:
            return metrics
        if self.primary not in metrics:
            raise ParameterError(f"task {self.name!r}: {unknown_name('metric', self.primary, metrics)}")
        return {self.primary: metrics.pop(self.primary), **metrics}

    def _given_metrics(self, given: Mapping[str, Any]) -> dict[str, Metric]:
        """Return metrics of the user's own, and those of the kind's that they name."""
        kind = self.default_metrics() if any(isinstance(metric, str) for metric in given.values()) else {}
        return {
            name: self._own_metric(metric, kind)
            if isinstance(metric, str)
            else made_metric(name, metric, self._directions.get(name))
            for name, metric in given.items()
        }

    def _named_metrics(self) -> dict[str, Metric]:
        """Return the metrics that were named, by default all of the kind's own."""
        kind = self.default_metrics()
        return {name: self._own_metric(name, kind) for name in self._metrics or kind}

    def _check_metric(self, name: str, metric: Metric) -> None:
        if metric.higher_is_better is None:
            raise ParameterError(
                f"task {self.name!r}: metric {name!r} has no `higher_is_better`. Set it to True or False, or pass "
                f"higher_is_better={{{name!r}: True}} to the task."
            )
        if name in self.loss_names:
            raise ParameterError(f"task {self.name!r}: metric {name!r} has the name of a loss. Choose another.")

    def _own_metric(self, name: str, metrics: Mapping[str, Metric]) -> Metric:
        if name in metrics:
            return metrics[name]
        if name in METRICS:
            return METRICS.build(name)
        raise ParameterError(f"task {self.name!r}: {unknown_name('metric', name, {**metrics, **METRICS})}")

    def with_parameters(self, **parameters: Any) -> Task:
        """Return a task of the same class with some keyword parameters changed.

        Raises:
            ParameterError: if the class refuses a value.
        """
        args, kwargs = self._arguments
        changed: Task = type(self)(*args, **{**kwargs, **parameters})
        return changed


def _own_losses(task: str, loss: Any, weights: Mapping[str, float] | None) -> OwnLosses | None:
    if loss is None and weights:
        raise ParameterError(f"task {task!r}: `loss_weights` needs `loss`, a mapping name -> loss.")
    return None if loss is None else OwnLosses(task, loss, weights)


def _checked_likelihood(task: str, likelihood: Any) -> Any:
    if likelihood is None or likelihood == "loss" or isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, (str, type)) or not callable(likelihood):
        raise ParameterError(
            f"task {task!r}: `likelihood` must be a function outputs -> torch.distributions.Distribution, a "
            f"`Likelihood` or 'loss', got {likelihood!r}."
        )
    return likelihood


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
