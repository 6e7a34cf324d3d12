"""Objectives of a search: what is read from the figures of a run, and in which direction it is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.study.costs import cost_rows
from sparsemtl.study.search_options import COSTS, DELTA_M
from sparsemtl.tasks import Task
from sparsemtl.training.evaluation.metric_facts import metric_facts

_Values = Mapping[str, Mapping[str, float]]
"""Task -> metric -> value on validation data."""


@dataclass(frozen=True)
class Score:
    """Figure of validation data.

    Attributes:
        metrics: task -> metric that is read.
        signs: task -> 1 if higher is better, else -1.
        reference: task -> value that changes are measured against, in %; None reads the figure itself.
    """

    metrics: Mapping[str, str]
    signs: Mapping[str, float]
    reference: Mapping[str, float] | None = None

    def of(self, values: _Values) -> float:
        """Return the mean over tasks; NaN if a value is missing, or a reference is 0.

        Args:
            values: the values; tasks that a method does not train are left out of the mean.
        """
        found = {
            task: float(figures.get(metric, math.nan))
            for task, metric in self.metrics.items()
            if (figures := values.get(task))
        }
        if self.reference is not None:
            found = {task: self._change(task, value) for task, value in found.items()}
        return fmean(found.values()) if found else math.nan

    def _change(self, task: str, value: float) -> float:
        against = (self.reference or {}).get(task, math.nan)
        return 100 * self.signs[task] * (value - against) / abs(against) if against else math.nan


@dataclass(frozen=True)
class Objective:
    """Objective of a search.

    Attributes:
        name: its name in the study file.
        maximize: higher is better.
        score: figure of validation data; None for a cost.
    """

    name: str
    maximize: bool
    score: Score | None

    @property
    def relative(self) -> bool:
        """True if it is measured against a reference."""
        return self.name == DELTA_M

    def of(self, summary: Mapping[str, Any], reference: Mapping[str, float] | None) -> float:
        """Return the objective of a finished run; NaN if it is undefined.

        Args:
            summary: summary of the run.
            reference: task -> value that changes are measured against.
        """
        if self.score is None:
            return float(dict(cost_rows(summary)).get(COSTS[self.name]) or math.nan)
        return self.against(reference).of(_validation_values(summary))

    def against(self, reference: Mapping[str, float] | None) -> Score:
        """Return the figure of validation data, measured against a reference if it is a change."""
        assert self.score is not None
        return Score(self.score.metrics, self.score.signs, reference) if self.relative else self.score


def _validation_values(summary: Mapping[str, Any]) -> _Values:
    """Return the values of a run's selected epoch."""
    return {
        task: {name: math.nan if value is None else value for name, value in entry["validation"].items()}
        for task, entry in summary["tasks"].items()
    }


def primary_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return task -> its primary metric at a run's selected epoch."""
    values = _validation_values(summary)
    return {task: values[task].get(entry["primary"], math.nan) for task, entry in summary["tasks"].items()}


def read_objectives(names: Sequence[str], tasks: Sequence[Task], *, measured: bool) -> list[Objective]:
    """Return objectives by their names.

    Args:
        names: the names.
        tasks: tasks of the data.
        measured: runs measure their cost.

    Raises:
        ConfigError: if there is no such objective, task or metric, or costs are not measured.
    """
    return [_objective(name, tasks, measured=measured) for name in names]


def _objective(name: str, tasks: Sequence[Task], *, measured: bool) -> Objective:
    directions = {
        task.name: {**dict.fromkeys(task.loss_names, False), **metric_facts(task).directions} for task in tasks
    }
    primary = {task.name: metric_facts(task).primary for task in tasks}
    if name == DELTA_M:
        signs = {task: 1.0 if directions[task][metric] else -1.0 for task, metric in primary.items()}
        return Objective(name, True, Score(primary, signs))
    if name in COSTS:
        if not measured:
            raise ConfigError(f"search.objective: {name!r} needs `training.measure_cost: true`, found false.")
        return Objective(name, False, None)
    task, _, metric = name.rpartition(".")
    if task not in directions:
        known = [DELTA_M, *COSTS, *(f"{of}.{first}" for of, first in primary.items())]
        raise ConfigError(f"search.objective: {unknown_name('objective', name, known)}")
    if metric not in directions[task]:
        raise ConfigError(f"search.objective: {unknown_name(f'metric of task {task!r}', metric, directions[task])}")
    return Objective(name, directions[task][metric], Score({task: metric}, {task: 1.0}))
