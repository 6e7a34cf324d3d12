"""Charts of a study: one colour per method in all of them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from markupsafe import Markup

from sparsemtl.report.charts import Chart, gain_chart, line_chart
from sparsemtl.report.words import arrow
from sparsemtl.study.figures import Spread
from sparsemtl.study.record import StudyRecord
from sparsemtl.study.results import DELTA, StudyResults, gains, task_level
from sparsemtl.views.plots import Axis, Gain, Line


def gain_charts(best: StudyResults, colours: Mapping[str, int], baseline: str) -> list[Chart]:
    """Draw changes against the baseline: the mean over tasks, then every task; empty without a baseline.

    Args:
        best: results of one setting per method.
        colours: method -> index of its colour.
        baseline: name of the baseline in sentences.
    """
    figures = gains(best)
    there = figures.mean.notna().any(axis=1)
    mean, std = figures.mean[there], figures.std[there]
    who = [(str(setting), colours[method]) for setting, method in best.settings["method"][there].items()]
    columns = [DELTA, *best.primary] if len(best.primary) > 1 else list(best.primary)
    return [
        Chart(
            _whole(best) if column == DELTA else column,
            "Δm, %" if column == DELTA else f"gain in {best.primary[column]}, %",
            gain_chart(
                [
                    Gain(label, colour, m, s)
                    for (label, colour), m, s in zip(who, mean[column], std[column], strict=True)
                ],
                label=f"change of {column} against {baseline}",
            ),
        )
        for column in columns
        if mean[column].notna().any()
    ]


def key_charts(results: StudyResults, best: StudyResults, key: str, colours: Mapping[str, int]) -> list[Chart]:
    """Draw test figures over a numeric key of the grid: Δm, then every task; empty for fewer than two values.

    Other keys of the grid have the values that were selected on validation data. A method without the key is a
    horizontal line. A panel is left out if no method with the key has figures for it.
    """
    column = results.settings[key]
    if not pd.api.types.is_numeric_dtype(column) or column.dtype == bool or column.nunique() < 2:
        return []
    tasks = task_level(results, results.primary, "test")
    delta = gains(results)
    slices = _slices(results, best, key)
    values = sorted(column.dropna().unique().tolist())
    axis = _axis(key, values)
    panels = [(_whole(results), "Δm % ↑", delta, DELTA)]
    panels += [(task, _unit(results, task), tasks, task) for task in results.primary]
    return [
        Chart(title, unit, _key_chart(figures, task, axis, slices, colours, results.baseline))
        for title, unit, figures, task in panels
        if any(figures.mean[task].reindex(places.dropna().index).notna().any() for places in slices.values())
    ]


def _axis(key: str, values: list[float]) -> Axis:
    """Return the axis of a key: logarithmic if the values span decades, with a place for zero."""
    positive = [value for value in values if value > 0]
    wide = values[0] >= 0 and len(positive) > 1 and positive[-1] > 30 * positive[0]
    floor = positive[0] if wide and values[0] == 0 else None
    return Axis(key, ticks=values if len(values) < 10 else (), log=wide, floor=floor)


def _slices(results: StudyResults, best: StudyResults, key: str) -> dict[str, pd.Series[float]]:
    """Return method -> values of the key, of the settings that differ from the selected one in this key only."""
    slices = {}
    for _, pick in best.settings.iterrows():
        same = results.settings[results.settings["method"] == pick["method"]]
        for other in results.grid:
            if other != key:
                same = same[same[other].isna() if pd.isna(pick[other]) else same[other] == pick[other]]
        slices[str(pick["method"])] = same[key].sort_values()
    return slices


def _key_chart(
    figures: Spread,
    column: str,
    axis: Axis,
    slices: Mapping[str, pd.Series[float]],
    colours: Mapping[str, int],
    baseline: str | None,
) -> Markup:
    lines, levels = [], []
    for method, places in slices.items():
        mean, std = figures.mean[column].reindex(places.index), figures.std[column].reindex(places.index)
        if places.isna().all():
            levels += [(float(value), colours[method]) for value in mean.dropna()]
        else:
            lines.append(Line(list(places), list(mean), colours[method], deviation=list(std), dots=True))
    if column == DELTA and baseline is not None and baseline in colours:
        levels.append((0.0, colours[baseline]))  # what everything here is measured against
    return line_chart(lines, axis=axis, levels=levels, label=f"{column} over {axis.label}")


def learning_curves(study: StudyRecord, best: StudyResults, colours: Mapping[str, int]) -> list[Chart]:
    """Draw the tasks' primary metrics on validation data: one line per method, mean over seeds as far as all ran."""
    frame = best.frame.drop_duplicates("run")
    charts = []
    for task, metric in best.primary.items():
        lines = []
        for _, rows in frame.groupby("setting", sort=False):
            curves = [
                pd.Series(curve)
                for name in rows["run"]
                if name in study.runs and len(curve := study.runs[name].curve("validation", task, metric))
            ]
            if curves:
                seeds = pd.concat(curves, axis=1).dropna()
                mean, std = seeds.mean(axis=1), seeds.std(axis=1)
                method = str(rows["method"].iloc[0])
                lines.append(Line(list(mean.index), list(mean), colours[method], deviation=list(std)))
        if lines:
            svg = line_chart(lines, label=f"validation {metric} of {task} over epochs")
            charts.append(Chart(task, _unit(best, task), svg))
    return charts


def _whole(results: StudyResults) -> str:
    """Return the name of the tasks that Δm is the mean of."""
    return "all tasks" if len(results.common) == len(results.tasks) else "common tasks"


def _unit(results: StudyResults, task: str) -> str:
    metric = results.primary[task]
    return metric + arrow(results.higher_is_better(task, metric))
