"""Value of an epoch on validation data: one number, larger is better, and the tasks that the number covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from sparsemtl.errors import ParameterError
from sparsemtl.tasks.task import Task
from sparsemtl.training.checkpoints.structure import check_state
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.results import Results

Monitor = Literal["score", "loss"] | Callable[[Results], float]
"""Rule of model selection: `score`, the mean relative change of the primary metrics; `loss`, minus the weighted mean
loss; or a function of the validation results (task -> metric -> value) that returns a number, larger is better. If
each task is selected on its own, the function is called with the results of one task at a time."""

_DIGITS = 12
"""Number of digits of a score that count: the last digits of a float64 depend on the unit of the metrics."""


@dataclass(frozen=True)
class Merit:
    """Value of an epoch.

    Attributes:
        value: larger is better; finite.
        tasks: the tasks that the value covers; a task whose metric is undefined in the epoch is left out.
    """

    value: float
    tasks: tuple[str, ...]

    def comparable(self, other: Merit) -> bool:
        """Return True if both cover the same tasks, so that their values can be compared."""
        return self.tasks == other.tasks

    def beats(self, other: Merit | None) -> bool:
        """Return True if this epoch is better than `other`.

        Values are compared over the same tasks only. An epoch that covers more tasks beats an epoch that covers fewer.
        Of two epochs that cover equally many, but different tasks, the earlier one stays.
        """
        if other is None or len(self.tasks) > len(other.tasks):
            return True
        return self.comparable(other) and self.value > other.value


class _Valuation(Protocol):
    """Computation of the merit of epochs from validation results."""

    @property
    def words(self) -> str:
        """Rule in words, for the summary and the report."""

    def observe(self, epoch: int, results: Results) -> None:
        """Observe an epoch (counted from 0), before `merit` is called for it."""

    def merit(self, results: Results, tasks: Sequence[str]) -> Merit | None:
        """Return the merit over these tasks; None if it is undefined for all of them."""

    def undefined(self, results: Results, tasks: Sequence[str]) -> list[tuple[str, str]]:
        """Return (task, metric) of the undefined metrics, which a merit leaves out."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""


@dataclass(frozen=True)
class _ReferenceValue:
    """Reference value R of a task's metric.

    Attributes:
        metric: name of the metric.
        value: R.
        scale: positive divisor of changes; None as long as it would be 0 (see `RelativeChange`).
        epoch: epoch of R, counted from 1.
    """

    metric: str
    value: float
    scale: float | None
    epoch: int


class RelativeChange:
    """Mean over the tasks of s (M - R) / |R|, in the form of Maninis et al.'s Delta_m (CVPR 2019); the monitor `score`.

    M is the task's primary metric in the epoch, R its value in the first observed epoch in which it is defined, and
    s = 1 if higher is better, -1 if lower is better. Units cancel: metres and millimetres select the same epoch.
    For R² and explained variance the divisor is 1 - R in place of |R|, which gives the relative change of the
    unexplained variance. Their R is often close to 0 after an epoch, and a task divided by it would decide alone.
    If the divisor is 0, it is taken from the first M for which it is not 0; until then the change is 0.

    Args:
        tasks: task name -> task.
    """

    words = (
        "mean over the tasks of the relative change s (M - R) / |R| of the primary validation metric M, with R its "
        "value in the first epoch that could be chosen, s = 1 where higher is better and -1 where lower is; for R² the "
        "scale is 1 - R"
    )

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        facts = {name: metric_facts(task) for name, task in tasks.items()}
        self._primary = {name: (of.primary, of.directions[of.primary]) for name, of in facts.items()}
        self._origins = {name: of.origin for name, of in facts.items()}
        self.references: dict[str, _ReferenceValue] = {}

    def observe(self, epoch: int, results: Results) -> None:
        """Fix the references that are still missing."""
        for task, (metric, _) in self._primary.items():
            value = results[task][metric]
            if not math.isfinite(value):
                continue
            known = self.references.get(task)
            scale = abs(value - self._origins[task]) or None
            if known is None:
                self.references[task] = _ReferenceValue(metric, value, scale, epoch + 1)
            elif known.scale is None:
                self.references[task] = _ReferenceValue(metric, known.value, scale, known.epoch)

    def merit(self, results: Results, tasks: Sequence[str]) -> Merit | None:
        """Return the mean relative change over the tasks whose metric is defined."""
        defined = tuple(task for task in tasks if math.isfinite(results[task][self._primary[task][0]]))
        if not defined:
            return None
        mean = math.fsum(self._change(task, results) for task in defined) / len(defined)
        return Merit(_without_last_digits(mean), defined) if math.isfinite(mean) else None

    def _change(self, task: str, results: Results) -> float:
        metric, higher = self._primary[task]
        reference = self.references[task]
        if reference.scale is None:
            return 0.0
        change = (results[task][metric] - reference.value) / reference.scale
        return change if higher else -change

    def undefined(self, results: Results, tasks: Sequence[str]) -> list[tuple[str, str]]:
        """Return the tasks whose primary metric is undefined."""
        named = [(task, self._primary[task][0]) for task in tasks]
        return [(task, metric) for task, metric in named if not math.isfinite(results[task][metric])]

    def state_dict(self) -> dict[str, Any]:
        """Return the references."""
        return {"references": {task: asdict(reference) for task, reference in self.references.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the references."""
        for task, reference in state["references"].items():
            check_state(reference, {"metric": "", "value": 0.0, "scale": None, "epoch": 0}, f"references.{task}")
            if reference["scale"] is not None:
                check_state(reference["scale"], 0.0, f"references.{task}.scale")
        self.references = {task: _ReferenceValue(**reference) for task, reference in state["references"].items()}


class _Stateless:
    def observe(self, epoch: int, results: Results) -> None:
        """Keep nothing from epoch to epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Ignore the empty state."""


class _WeightedLoss(_Stateless):
    """Minus the mean over the tasks of weight times validation loss; the monitor `loss`.

    Args:
        tasks: task name -> task.
    """

    words = "mean over the tasks of their validation losses times their weights, lower is better"

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._weights = {name: task.weight for name, task in tasks.items()}

    def merit(self, results: Results, tasks: Sequence[str]) -> Merit | None:
        """Return minus the mean weighted loss over the tasks whose loss is defined."""
        defined = tuple(task for task in tasks if math.isfinite(results[task]["loss"]))
        total = math.fsum(results[task]["loss"] * self._weights[task] for task in defined)
        return Merit(-total / len(defined), defined) if defined and math.isfinite(total) else None

    def undefined(self, results: Results, tasks: Sequence[str]) -> list[tuple[str, str]]:
        """Return the tasks whose loss is undefined."""
        return [(task, "loss") for task in tasks if not math.isfinite(results[task]["loss"])]


class _OwnFunction(_Stateless):
    """Function of the validation results that a user gives, larger is better.

    Args:
        function: maps task -> metric -> value to a number.
    """

    def __init__(self, function: Callable[[Results], float]) -> None:
        self._function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.words = f"function `{self.name}` of the validation results, higher is better"

    def merit(self, results: Results, tasks: Sequence[str]) -> Merit | None:
        """Return the function's value for the tasks' results; None if it is not finite."""
        value = self._function(Results({task: dict(results[task]) for task in tasks}))
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ParameterError(f"`monitor`: {self.name} must return a number, got {value!r}.") from None
        return Merit(number, tuple(tasks)) if math.isfinite(number) else None

    def undefined(self, results: Results, tasks: Sequence[str]) -> list[tuple[str, str]]:
        """Return the function with all tasks, which have one value together."""
        return [(", ".join(tasks), self.name)]


def valuation_of(monitor: Any, tasks: Mapping[str, Task]) -> _Valuation:
    """Return the computation that a `Monitor` names.

    Args:
        monitor: a `Monitor`.
        tasks: task name -> task.

    Raises:
        ParameterError: if `monitor` is not a `Monitor`.
    """
    if monitor == "score":
        return RelativeChange(tasks)
    if monitor == "loss":
        return _WeightedLoss(tasks)
    if callable(monitor):
        return _OwnFunction(monitor)
    extra = " Test data only reports; it never chooses a model." if "test" in str(monitor) else ""
    raise ParameterError(
        f"`monitor` must be 'score', 'loss' or a function of the results, on validation data, got {monitor!r}.{extra}"
    )


def task_values(monitor: Any, results: Results, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return task -> value of an epoch by a `Monitor`, larger is better; without tasks for which it is undefined.

    Epochs of one task are ordered as where the task is selected on its own. For `score`, the value is the primary
    metric, or minus it where lower is better.

    Args:
        monitor: a `Monitor`.
        results: results of the epoch.
        tasks: task name -> task.
    """
    values = {}
    for name, task in tasks.items():
        if monitor == "score":
            facts = metric_facts(task)
            value = results[name][facts.primary] * (1 if facts.directions[facts.primary] else -1)
        else:
            merit = valuation_of(monitor, {name: task}).merit(results, [name])
            value = math.nan if merit is None else merit.value
        if math.isfinite(value):
            values[name] = value
    return values


def _without_last_digits(value: float) -> float:
    """Round to 12 decimals, or to 12 significant digits if larger than 1: further digits depend on units."""
    above = math.ceil(math.log10(abs(value))) if value else 0
    return round(value, _DIGITS - max(above, 0))
