"""Metrics of the user's own: torchmetrics metrics, plain functions, and names of the kind's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from torch import Tensor

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.registry.registry import Registry

if TYPE_CHECKING:
    from torchmetrics.metric import Metric

    from sparsemtl.tasks.metrics.own_metrics import MetricFunction
    from sparsemtl.tasks.task import Task

_GivenMetric: TypeAlias = "Metric | MetricFunction | str"
"""A torchmetrics metric, a function of outputs and labels, or the name of one of the kind's own metrics."""

METRICS: Registry[Metric] = Registry("metric", {})
"""Metrics of plugins by name, for `metrics` of any task and configuration: classes of torchmetrics metrics, and
functions without arguments that return one, such as `function_metric` makes."""


def function_metric(function: MetricFunction, *, higher_is_better: bool) -> Callable[[], Metric]:
    """Return a member of `METRICS` that measures a function of the outputs and labels of a whole split.

    Args:
        function: as in `metrics` of a task.
        higher_is_better: direction of improvement.

    Examples:
        >>> METRICS["mape"] = function_metric(lambda z, y: ((z - y) / y).abs().mean(), higher_is_better=False)
        >>> list(Regression("price", metrics=["mape", "mae"]).metrics())
        ['mape', 'mae']
        >>> del METRICS._members["mape"]
    """

    def make() -> Metric:
        from sparsemtl.tasks.metrics.own_metrics import FunctionMetric

        return FunctionMetric(getattr(function, "__name__", "function"), function, higher_is_better=higher_is_better)

    return make


def check_metrics(task: str, metrics: object, directions: Mapping[str, bool]) -> None:
    """Raise a ParameterError unless every given metric is one, and directions belong to given metrics."""
    given = metrics if isinstance(metrics, Mapping) else {}  # names are checked by `metrics()`
    for name in directions:
        if name not in given:
            raise ParameterError(f"task {task!r}: `higher_is_better`: {unknown_name('metric', name, given)}")
    for name, metric in given.items():
        if isinstance(metric, type):
            raise ParameterError(
                f"task {task!r}: metric {name!r} is the class {metric.__name__}; pass an instance of it."
            )
        if isinstance(metric, str) or all(hasattr(metric, part) for part in ("update", "compute", "higher_is_better")):
            continue
        if hasattr(metric, "update") or not callable(metric):
            raise ParameterError(
                f"task {task!r}: metric {name!r} must be a torchmetrics metric, got {type(metric).__name__}. A "
                "function (outputs, labels) -> number is one as well, and so is the name of one of the kind's own."
            )
        if name not in directions:
            raise ParameterError(
                f"task {task!r}: metric {name!r} is a function; pass its direction, "
                f"higher_is_better={{{name!r}: True}} or False."
            )


def selected_metrics(metrics: Any) -> dict[str, _GivenMetric] | list[str] | None:
    """Return metrics of the user's own by name, or names of the kind's own; None if nothing was given."""
    if not metrics:
        return None
    return dict(metrics) if isinstance(metrics, Mapping) else list(dict.fromkeys(metrics))


def _is_function(metric: object) -> bool:
    """Return True for a plain function of outputs and labels, in place of a torchmetrics metric."""
    return not isinstance(metric, str) and not hasattr(metric, "update")


def known_rows(task: Task, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and labels of known labels only, in rows.

    Rows are samples all of whose values are known; or the known pixels and tokens, with outputs (N, C), and labels (N,)
    or (N, C).

    Args:
        task: the task.
        output: outputs (B, ...).
        label: labels that `Task.labels` returned.
    """
    known = task.known(label)
    if known.ndim == output.ndim:  # a label per output
        known = known.flatten(1).all(1)
    if known.ndim > 1:
        label = label.movedim(task.output_axis, -1).squeeze(-1) if label.ndim > known.ndim else label
        output = output.movedim(task.output_axis, -1)
    return output[known], label[known]


def made_metric(name: str, given: Metric | MetricFunction, direction: bool | None) -> Metric:
    """Return a new metric from what was given, with its direction if there is one."""
    from sparsemtl.tasks.metrics.own_metrics import FunctionMetric, set_direction

    if _is_function(given):
        return FunctionMetric(name, cast("MetricFunction", given), higher_is_better=direction)
    made = deepcopy(cast("Metric", given))
    if direction is not None:
        set_direction(made, direction)
    return made
