"""Which epoch's model is kept: validation chooses, test data only reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sparsemtl.errors import ParameterError
from sparsemtl.models import MultiTaskModel
from sparsemtl.tasks import Task
from sparsemtl.training.evaluation import Results

Monitor = Literal["score", "loss"]
"""`score`: mean over the tasks of their primary validation metric (times -1 where lower is better); `loss`: minus
the weighted mean of the validation losses."""


class Selection:
    """Remembers the best epoch, of the whole model or of every task apart.

    Args:
        model: whose tasks are chosen for.
        monitor: what is maximised.
        apart: choose for every task apart, although they share weights; tasks that share none always are.
        after: epochs at the start of which none is chosen.

    Raises:
        ParameterError: if the monitor is not a validation score.
    """

    def __init__(
        self, model: MultiTaskModel, monitor: Monitor = "score", *, apart: bool = False, after: int = 0
    ) -> None:
        if monitor not in ("score", "loss"):
            extra = " Test data only reports; it never chooses a model." if "test" in str(monitor) else ""
            raise ParameterError(f"`monitor` must be 'score' or 'loss', on validation data, got {monitor!r}.{extra}")
        self.monitor = monitor
        self.after = after
        self.parts: dict[str, tuple[str, ...]] = (
            {task: (task,) for task in model.tasks}
            if len(model.tasks) > 1 and (apart or model.independent)
            else {"all": tuple(model.tasks)}
        )
        self._tasks = model.tasks
        self._directions = {name: primary_of(task) for name, task in model.tasks.items()}
        self.best: dict[str, tuple[float, int]] = {}

    def update(self, epoch: int, validation: Results) -> list[str]:
        """Take an epoch's validation results in; returns the parts that it made better."""
        improved: list[str] = []
        for part, tasks in self.parts.items() if epoch >= self.after else ():
            value = self.value(validation, tasks)
            if part not in self.best or value > self.best[part][0]:
                self.best[part] = (value, epoch)
                improved.append(part)
        return improved

    def value(self, validation: Results, tasks: tuple[str, ...] | None = None) -> float:
        """What is maximised; minus infinity if a metric is undefined."""
        chosen = tuple(self._tasks) if tasks is None else tasks
        total = sum(self._of_task(validation[task], task) for task in chosen) / len(chosen)
        return total if total == total else float("-inf")

    def _of_task(self, results: Mapping[str, float], task: str) -> float:
        if self.monitor == "loss":
            return -results["loss"] * self._tasks[task].weight
        metric, higher = self._directions[task]
        return results[metric] if higher else -results[metric]

    def best_epoch(self, task: str) -> int | None:
        """The epoch, counted from 1, whose model the task is reported with."""
        part = task if task in self.parts else "all"
        return self.best[part][1] + 1 if part in self.best else None

    def stale(self, epoch: int) -> int:
        """Epochs since anything became better."""
        return epoch - max((best for _, best in self.best.values()), default=epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self.best = {part: (value, epoch) for part, (value, epoch) in state["best"].items()}


def primary_of(task: Task) -> tuple[str, bool]:
    """A task's primary metric, and whether higher is better."""
    name, metric = next(iter(task.metrics().items()))
    return name, bool(metric.higher_is_better)
