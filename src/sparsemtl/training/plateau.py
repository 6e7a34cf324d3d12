"""Steps of a `ReduceLROnPlateau` after each epoch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from sparsemtl.errors import MetricWarning, ParameterError
from sparsemtl.tasks.task import Task
from sparsemtl.training.evaluation.monitors import Merit, Monitor, valuation_of
from sparsemtl.training.evaluation.results import Results


class Plateau:
    """Steps a `ReduceLROnPlateau` with a quantity that fits its mode.

    With mode `max` the scheduler gets the value that selects the model, see `Monitor`; the score is 0 in the first
    validated epoch, which is the reference, and rises. With mode `min` the scheduler gets the mean over the tasks of
    weight times validation loss. An epoch in which fewer metrics are defined than before does not step the scheduler.
    An epoch in which more metrics are defined than ever before starts the comparison anew.

    Args:
        scheduler: the scheduler.
        monitor: rule of model selection.
        tasks: task name -> task.

    Raises:
        ParameterError: if the scheduler would compare minus the loss, which is negative, by a relative threshold.
    """

    def __init__(self, scheduler: ReduceLROnPlateau, monitor: Monitor, tasks: Mapping[str, Task]) -> None:
        if monitor == "loss" and scheduler.mode == "max" and scheduler.threshold_mode == "rel" and scheduler.threshold:
            raise ParameterError(
                "ReduceLROnPlateau(mode='max', threshold_mode='rel') with monitor='loss' takes equal and slightly "
                "worse losses for better ones, since what is maximised is negative. Use mode='min', which gets the "
                "validation loss, or threshold_mode='abs'."
            )
        self._scheduler = scheduler
        self._tasks = tuple(tasks)
        self._valuation = valuation_of("loss" if scheduler.mode == "min" else monitor, tasks)
        self._covered: tuple[str, ...] = ()

    def step(self, epoch: int, results: Results) -> None:
        """Step the scheduler with an epoch's validation results, if they are comparable with earlier ones."""
        self._valuation.observe(epoch, results)
        merit = self._valuation.merit(results, self._tasks)
        if merit is None or not self._comparable(merit):
            missing = ", ".join(f"{m!r} of task {t!r}" for t, m in self._valuation.undefined(results, self._tasks))
            warnings.warn(
                f"epoch {epoch + 1}: ReduceLROnPlateau was not stepped, because {missing} is undefined.",
                MetricWarning,
                stacklevel=3,
            )
            return
        minimised = self._scheduler.mode == "min"
        if merit.tasks != self._covered:
            self._covered = merit.tasks
            self._scheduler.best = math.inf if minimised else -math.inf
        self._scheduler.step(-merit.value if minimised else merit.value)

    def _comparable(self, merit: Merit) -> bool:
        return merit.tasks == self._covered or len(merit.tasks) > len(self._covered)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {"covered": list(self._covered), "monitor": self._valuation.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self._covered = tuple(state["covered"])
        self._valuation.load_state_dict(state["monitor"])
