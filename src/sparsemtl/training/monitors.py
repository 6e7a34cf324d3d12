"""Value of an epoch by its validation results: one number, larger is better, and the tasks that it covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sparsemtl.errors import ParameterError
from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation import Results
from sparsemtl.training.structure import check_state

if TYPE_CHECKING:
    from torchmetrics import Metric

Monitor = Literal["score", "loss"] | Callable[[Results], float]
"""`score`: see `RelativeChange`; `loss`: see `WeightedLoss`; or a function of the validation results (task -> metric ->
value) that returns a number, larger is better. Where tasks are chosen apart, the function is called with one task's
results at a time."""

_DIGITS = 12
"""Digits of a score that count: the last ones of a float64 depend on the unit of the metrics."""


@dataclass(frozen=True)
class Merit:
    """Value of an epoch.

    Attributes:
        value: larger is better; finite.
        tasks: the tasks that it covers; one whose metric is undefined in the epoch is left out.
    """

    value: float
    tasks: tuple[str, ...]

    def comparable(self, other: Merit) -> bool:
        """Return whether both cover the same tasks, so that their values can be compared."""
        return self.tasks == other.tasks

    def beats(self, other: Merit | None) -> bool:
        """Return whether this epoch is better than `other`.

        Values are compared over the same tasks only. An epoch that covers more tasks beats one that covers fewer; of
        two that cover as many, but not the same, the earlier one stays.
        """
        if other is None or len(self.tasks) > len(other.tasks):
            return True
        return self.comparable(other) and self.value > other.value


class Valuation(Protocol):
    """Computes the merit of epochs from validation results."""

    @property
    def words(self) -> str:
        """The rule, for the summary and the report."""

    def observe(self, epoch: int, results: Results) -> None:
        """Take in an epoch (counted from 0) before its merit is asked for."""

    def merit(self, results: Results, tasks: Sequence[str]) -> Merit | None:
        """Return the merit over these tasks; None if nothing of it is defined."""

    def undefined(self, results: Results, tasks: Sequence[str]) -> list[tuple[str, str]]:
        """Return (task, metric) of what a merit that covers not all tasks leaves out."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""


@dataclass(frozen=True)
class Reference:
    """What a task's metric is compared with.

    Attributes:
        metric: its name.
        value: R.
        scale: what changes are divided by, positive; None as long as it would have been 0 (see `RelativeChange`).
        epoch: of R, counted from 1.
    """

    metric: str
    value: float
    scale: float | None
    epoch: int


class RelativeChange:
    """`score`: the mean over the tasks of s (M - R) / |R|, the form of Maninis et al.'s Delta_m (CVPR 2019).

    M is the task's primary metric in the epoch, R its value in the first epoch observed in which it is defined, and
    s = 1 where higher is better, -1 where lower is. No unit enters: metres and millimetres choose the same epoch.
    For R² and explained variance the scale is 1 - R in place of |R|: the relative change of the variance that is left
    unexplained. Their R is often close to 0 after an epoch, and a task divided by it would decide alone. If the scale
    of R is 0, that of the first M where it is not takes its place; until then the change is 0.

    Args:
        tasks: task name -> task.
    """

    words = (
        "mean over the tasks of the relative change s (M - R) / |R| of the primary validation metric M, with R its "
        "value in the first epoch that could be chosen, s = 1 where higher is better and -1 where lower is; for R² the "
        "scale is 1 - R"
    )

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._primary = {name: primary_of(task) for name, task in tasks.items()}
        self._origins = {name: _origin(next(iter(task.metrics().values()))) for name, task in tasks.items()}
        self.references: dict[str, Reference] = {}

    def observe(self, epoch: int, results: Results) -> None:
        """Fix the references that are still missing."""
        for task, (metric, _) in self._primary.items():
            value = results[task][metric]
            if not math.isfinite(value):
                continue
            known = self.references.get(task)
            scale = abs(value - self._origins[task]) or None
            if known is None:
                self.references[task] = Reference(metric, value, scale, epoch + 1)
            elif known.scale is None:
                self.references[task] = Reference(metric, known.value, scale, known.epoch)

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
        self.references = {task: Reference(**reference) for task, reference in state["references"].items()}


class _Stateless:
    def observe(self, epoch: int, results: Results) -> None:
        """Nothing is kept from epoch to epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""


class WeightedLoss(_Stateless):
    """`loss`: minus the mean over the tasks of weight times validation loss.

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


class OwnFunction(_Stateless):
    """A user's function of the validation results, larger is better.

    Args:
        function: task -> metric -> value to a number.
    """

    def __init__(self, function: Callable[[Results], float]) -> None:
        self._function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.words = f"function `{self.name}` of the validation results, higher is better"

    def merit(self, results: Results, tasks: Sequence[str]) -> Merit | None:
        """Return the function's value for the tasks' results; None if it is not finite."""
        value = self._function({task: dict(results[task]) for task in tasks})
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ParameterError(f"`monitor`: {self.name} must return a number, got {value!r}.") from None
        return Merit(number, tuple(tasks)) if math.isfinite(number) else None

    def undefined(self, results: Results, tasks: Sequence[str]) -> list[tuple[str, str]]:
        """Return the function for all tasks: it has one value or none."""
        return [(", ".join(tasks), self.name)]


def valuation_of(monitor: Any, tasks: Mapping[str, Task]) -> Valuation:
    """Make what a `Monitor` stands for.

    Args:
        monitor: a `Monitor`; anything else is refused.
        tasks: task name -> task.

    Raises:
        ParameterError: if it is no score of validation data.
    """
    if monitor == "score":
        return RelativeChange(tasks)
    if monitor == "loss":
        return WeightedLoss(tasks)
    if callable(monitor):
        return OwnFunction(monitor)
    extra = " Test data only reports; it never chooses a model." if "test" in str(monitor) else ""
    raise ParameterError(
        f"`monitor` must be 'score', 'loss' or a function of the results, on validation data, got {monitor!r}.{extra}"
    )


def primary_of(task: Task) -> tuple[str, bool]:
    """Return a task's primary metric, and whether higher is better."""
    name, metric = next(iter(task.metrics().items()))
    return name, bool(metric.higher_is_better)


def _origin(metric: Metric) -> float:
    """Return the value from which a metric's scale is measured: 0, or 1 where 0 is the skill of a constant."""
    from torchmetrics.regression import ExplainedVariance, R2Score

    from sparsemtl.tasks.value_metrics import KnownR2

    return 1.0 if isinstance(metric, (ExplainedVariance, KnownR2, R2Score)) else 0.0


def _without_last_digits(value: float) -> float:
    """Round to 12 decimals, or significant digits of larger values: the rest is rounding that units change."""
    above = math.ceil(math.log10(abs(value))) if value else 0
    return round(value, _DIGITS - max(above, 0))
