"""Model selection: the epoch whose model is kept. Validation data select, test data only report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsemtl.errors import CheckpointError, MetricWarning, SelectionError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.training.checkpoints.structure import check_state
from sparsemtl.training.evaluation.monitors import Merit, Monitor, valuation_of
from sparsemtl.training.evaluation.results import Results


@dataclass(frozen=True)
class Best:
    """The best epoch so far.

    Attributes:
        merit: its value, and the tasks that the value covers.
        epoch: counted from 0.
    """

    merit: Merit
    epoch: int


class Selection:
    """The best epoch so far, of the whole model or of every task on its own.

    A metric that is undefined (NaN or infinite) enters no comparison. Its task is left out of the epoch's mean, with
    a warning; an epoch that covers more tasks beats one that covers fewer, and values are compared over the same tasks
    only (`Merit.beats`). An epoch of which nothing is defined is never chosen.

    Args:
        model: the model, by whose tasks it is chosen.
        monitor: what is maximised.
        apart: choose for every task on its own, although tasks share weights; tasks that share none always are.
        after: number of epochs at the start that cannot be chosen.

    Raises:
        ParameterError: if the monitor is no score of validation data.
    """

    def __init__(
        self, model: MultiTaskModel, monitor: Monitor = "score", *, apart: bool = False, after: int = 0
    ) -> None:
        self._valuation = valuation_of(monitor, model.tasks)
        self.monitor = monitor if isinstance(monitor, str) else getattr(monitor, "__name__", type(monitor).__name__)
        self.after = after
        self.parts: dict[str, tuple[str, ...]] = (
            {task: (task,) for task in model.tasks}
            if len(model.tasks) > 1 and (apart or model.independent)
            else {"all": tuple(model.tasks)}
        )
        self.best: dict[str, Best] = {}
        #: Validation results of each task in the best epoch of its part.
        self.results = Results()
        #: (task, metric) -> the epochs, counted from 1, that could be chosen and in which the metric was undefined.
        self.undefined: dict[tuple[str, str], list[int]] = {}

    def update(self, epoch: int, validation: Results) -> list[str]:
        """Add the validation results of an epoch; return the parts that became better.

        Raises:
            SelectionError: if neither a loss nor a metric of a part is defined, and no epoch of it was chosen before.
        """
        improved: list[str] = []
        if epoch < self.after:
            return improved
        self._valuation.observe(epoch, validation)
        for part, tasks in self.parts.items():
            merit = self._valuation.merit(validation, tasks)
            if merit is None or merit.tasks != tasks:
                self._note_undefined(epoch, validation, tasks)
            best = self.best.get(part)
            if merit is None:
                if best is None and not any(math.isfinite(validation[task]["loss"]) for task in tasks):
                    raise SelectionError(self._nothing_left(part, f"in epoch {epoch + 1}"))
            elif merit.beats(best.merit if best else None):
                self.best[part] = Best(merit, epoch)
                self.results.update({task: dict(validation[task]) for task in tasks})
                improved.append(part)
        return improved

    def _note_undefined(self, epoch: int, validation: Results, tasks: tuple[str, ...]) -> None:
        for key in self._valuation.undefined(validation, tasks):
            epochs = self.undefined.setdefault(key, [])
            if epoch not in epochs:  # the epoch before, counted from 1, is not there: a new stretch, warned of once
                warnings.warn(
                    f"epoch {epoch + 1}: {key[1]!r} of task {key[0]!r} is undefined on validation data. The task does "
                    "not count where this epoch is compared with others; epochs in which it counts are preferred.",
                    MetricWarning,
                    stacklevel=4,
                )
            epochs.append(epoch + 1)

    def check(self) -> None:
        """Raise if a part has no best epoch.

        Raises:
            SelectionError: naming the tasks, metrics and epochs that were undefined.
        """
        for part in self.parts:
            if part not in self.best:
                raise SelectionError(self._nothing_left(part, "in any epoch that could be chosen"))

    def _nothing_left(self, part: str, when: str) -> str:
        tasks = self.parts[part]
        named = [
            f"{metric!r} of task {task!r} (epoch {', '.join(map(str, epochs))})"
            for (task, metric), epochs in self.undefined.items()
            if task in tasks or task == ", ".join(tasks)
        ]
        return (
            f"no model can be chosen: nothing that chooses it is defined on validation data {when}. Undefined: "
            f"{'; '.join(named) or 'nothing was validated'}. Check the validation inputs for NaN and that every task "
            "has labels there, or choose by another metric (`primary`) or `monitor`."
        )

    def best_epoch(self, task: str) -> int | None:
        """Return the epoch, counted from 1, whose model the task is reported with."""
        part = task if task in self.parts else "all"
        return self.best[part].epoch + 1 if part in self.best else None

    def stale(self, epoch: int) -> int:
        """Return the number of epochs since any part became better."""
        return epoch - max((best.epoch for best in self.best.values()), default=epoch)

    def summary(self) -> dict[str, Any]:
        """Return the rule in words, the references, and what was undefined, for the run's summary."""
        undefined = [{"task": t, "metric": m, "epochs": epochs} for (t, m), epochs in self.undefined.items()]
        return {"rule": self._valuation.words, **self._valuation.state_dict(), "undefined": undefined}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "best": {
                part: {"value": best.merit.value, "tasks": list(best.merit.tasks), "epoch": best.epoch}
                for part, best in self.best.items()
            },
            "results": {task: dict(values) for task, values in self.results.items()},
            "undefined": [[task, metric, list(epochs)] for (task, metric), epochs in self.undefined.items()],
            "monitor": self._valuation.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        for part, best in state["best"].items():
            check_state(best, {"value": 0.0, "tasks": [], "epoch": 0}, f"selection.best.{part}")
            if (
                part not in self.parts
                or not set(best["tasks"]) <= set(self.parts[part])
                or not math.isfinite(best["value"])
            ):
                raise CheckpointError(f"selection.best.{part} is no value of an epoch of this run.")
            if not isinstance(best["epoch"], int) or best["epoch"] < 0:
                raise CheckpointError(f"selection.best.{part}.epoch: expected a whole number, found {best['epoch']!r}.")
        self.best = {
            part: Best(Merit(best["value"], tuple(best["tasks"])), best["epoch"])
            for part, best in state["best"].items()
        }
        results: Any = state.get("results", {})  # earlier checkpoints have none
        check_state(results, {task: {} for task in results}, "selection.results")
        for task, values in results.items():
            check_state(values, dict.fromkeys(values, 0.0), f"selection.results.{task}")
        self.results = Results({task: dict(values) for task, values in results.items()})
        check_state(state["undefined"], [["", "", [0]]] * len(state["undefined"]), "selection.undefined")
        self.undefined = {(task, metric): list(epochs) for task, metric, epochs in state["undefined"]}
        self._valuation.load_state_dict(state["monitor"])
