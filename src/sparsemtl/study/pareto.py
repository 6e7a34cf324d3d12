"""Pareto front of a search with several objectives: settings that no other setting beats in all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparsemtl.study.results import DELTA, StudyResults, gains, run_level, signs, task_level
from sparsemtl.study.search_options import COSTS, DELTA_M
from sparsemtl.views.tables import Table

if TYPE_CHECKING:
    import pandas as pd


def objective_figures(results: StudyResults) -> pd.DataFrame:
    """Return one row per setting with all objectives, and one column per objective: means over seeds.

    `delta_m` is against the baseline, or against the first setting if there is none. Settings with fewer seeds than
    others are left out.
    """
    import pandas as pd

    seeds = results.frame.groupby("setting")["seed"].nunique().reindex(results.settings.index)
    columns = {name: _figures(results, name) for name in results.objectives}
    return pd.DataFrame(columns, index=results.settings.index)[(seeds == seeds.max()).to_numpy()].dropna()


def _figures(results: StudyResults, objective: str) -> pd.Series[float]:
    figures: pd.Series[float]
    if objective in COSTS:
        figures = run_level(results, COSTS[objective]).mean[COSTS[objective]]
    elif objective == DELTA_M:
        figures = _changes(results)
    else:
        task, _, metric = objective.rpartition(".")
        figures = task_level(results, {task: metric}, "validation").mean[task]
    return figures


def _changes(results: StudyResults) -> pd.Series[float]:
    """Return the mean change over tasks on validation data, in %; 0 for the setting that changes are against."""
    changes: pd.Series[float]
    if results.baseline in set(results.settings["method"]):
        changes = gains(results, "validation").mean[DELTA]
        own = [str(s) for s in changes.index[changes.isna()] if results.settings["method"][s] == results.baseline]
        return changes.fillna(dict.fromkeys(own, 0.0))
    mean = task_level(results, results.primary, "validation").mean[list(results.common)]
    first = mean.iloc[0]
    changes = (100 * signs(results)[mean.columns] * (mean - first) / first.abs().replace(0, math.nan)).mean(
        axis=1, skipna=False
    )
    return changes


def higher_is_better(results: StudyResults, objective: str) -> bool:
    """Return the direction of an objective."""
    if objective == DELTA_M or objective in COSTS:
        return objective == DELTA_M
    task, _, metric = objective.rpartition(".")
    return results.higher_is_better(task, metric)


def pareto_front(results: StudyResults) -> pd.DataFrame:
    """Return the rows of `objective_figures` that no other row beats in one objective and equals in all others.

    Rows are in the order of the last objective, the best value first.
    """
    figures = objective_figures(results)
    signed = figures * [1.0 if higher_is_better(results, str(name)) else -1.0 for name in figures]
    kept = [
        label
        for label, row in signed.iterrows()
        if not ((signed >= row).all(axis=1) & (signed > row).any(axis=1)).any()
    ]
    return figures.loc[kept].sort_values(
        figures.columns[-1], ascending=not higher_is_better(results, str(figures.columns[-1])), kind="stable"
    )


def pareto_table(results: StudyResults) -> Table | None:
    """Return the Pareto front as a table; None for fewer than two objectives, or without a setting that has all."""
    if len(results.objectives) < 2 or (front := pareto_front(results)).empty:
        return None
    arrows = {name: "↑" if higher_is_better(results, name) else "↓" for name in results.objectives}
    return Table(
        ["setting", *(f"{name} {arrow}" for name, arrow in arrows.items())],
        [[str(label), *map(float, row)] for label, row in front.iterrows()],
        title="Pareto front",
        notes=[
            f"{len(front)} of {len(results.settings)} settings: no other one is better in one objective and as good in "
            "the others. Metrics are of validation data, by which the search chose."
        ],
    )
