"""Charts at the head of a study's report: quality of every task against the cost of the compacted networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sparsemtl.report.charts import HEIGHT, WIDTH, Chart
from sparsemtl.report.drawing import INK, MUTED, draw, series
from sparsemtl.report.words import arrow, signed
from sparsemtl.study.costs import MACS, measured
from sparsemtl.study.figures import Spread
from sparsemtl.study.results import DELTA, StudyResults, gains, run_level, task_level
from sparsemtl.study.tables import to_units

_WIDE, _TALL = 760, 320
"""Width and height of the first panel in pixels."""


@dataclass(frozen=True)
class _Point:
    """One method.

    Attributes:
        label: the setting.
        colour: index of the method.
        x: multiply-adds per sample, above 0.
        x_deviation: standard deviation over seeds, NaN with one seed.
        y: quality.
        y_deviation: standard deviation over seeds, NaN with one seed.
    """

    label: str
    colour: int
    x: float
    x_deviation: float
    y: float
    y_deviation: float


@dataclass(frozen=True)
class _Tradeoff:
    """Panels of quality against cost, with the same points in each.

    Attributes:
        first: mean over tasks, with the methods' names; None without a baseline, or for one task.
        tasks: one panel per task.
    """

    first: Chart | None
    tasks: list[Chart]


def tradeoff(results: StudyResults, colours: Mapping[str, int]) -> _Tradeoff | None:
    """Draw quality against multiply-adds; None if no run was measured.

    Quality is the change of each task's primary metric against the baseline, or the metric if there is no baseline.

    Args:
        results: results of one setting per method.
        colours: method -> index of its colour.
    """
    if not measured(results):
        return None
    cost, quality = run_level(results, MACS), _quality(results)
    relative = _has_baseline(results)
    panels = {
        task: (
            _points(results, colours, cost, quality, task),
            f"change of {metric}, %" if relative else f"{metric}{arrow(results.higher_is_better(task, metric))}",
        )
        for task, metric in results.primary.items()
    }
    tasks = [
        Chart(task, unit, _tradeoff_chart(points, label=f"{task}: quality against multiply-adds", zero=relative))
        for task, (points, unit) in panels.items()
        if points
    ]
    return _Tradeoff(_first(results, colours, cost, quality), tasks)


def _first(results: StudyResults, colours: Mapping[str, int], cost: Spread, quality: Spread) -> Chart | None:
    points = (
        _points(results, colours, cost, quality, DELTA) if DELTA in quality.mean and len(results.primary) > 1 else []
    )
    if not points:
        return None
    label = "mean change over tasks against multiply-adds"
    svg = _tradeoff_chart(points, label=label, zero=True, named=True, width=_WIDE, height=_TALL)
    return Chart("Mean over tasks", f"change against {results.baseline}, %", svg)


def _has_baseline(results: StudyResults) -> bool:
    return bool((results.settings["method"] == results.baseline).any())


def _quality(results: StudyResults) -> Spread:
    """Return changes against the baseline, 0 for the baseline; or the figures if there is no baseline."""
    if not _has_baseline(results):
        return task_level(results, results.primary, "test")
    change = gains(results)
    own = results.settings.index[results.settings["method"] == results.baseline]
    mean = change.mean.copy()
    mean.loc[own] = 0.0
    return Spread(mean, change.std, change.n)


def _points(
    results: StudyResults, colours: Mapping[str, int], cost: Spread, quality: Spread, column: str
) -> list[_Point]:
    figures = (cost.mean[MACS], cost.std[MACS], quality.mean[column], quality.std[column])
    rows = zip(results.settings["method"].items(), *figures, strict=True)  # all are in the order of the settings
    points = [_Point(str(label), colours[str(method)], *values) for (label, method), *values in rows]
    return [point for point in points if point.x > 0 and not pd.isna(point.y)]


def _tradeoff_chart(
    points: Sequence[_Point],
    *,
    label: str,
    zero: bool,
    named: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Markup:
    """Draw points with error bars of one standard deviation; multiply-adds are on a logarithmic axis.

    Args:
        points: the methods.
        label: text for screen readers.
        zero: draw a line at zero, the baseline's quality.
        named: write the methods' names beside their points.
        width: width in pixels.
        height: height in pixels.
    """

    def plot(axes: Axes) -> None:
        axes.set_xscale("log")
        if zero:
            axes.axhline(0, color=INK, linewidth=1)
        for point in points:
            axes.errorbar(
                point.x,
                point.y,
                xerr=_bar(point.x_deviation),
                yerr=_bar(point.y_deviation),
                fmt="o",
                color=series(point.colour),
                markersize=9 if named else 7,
                linewidth=1.8,
                zorder=3,
            )
        _horizontal(axes, [point.x for point in points])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if zero:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(f"{value:+g}") if value else "0"))
        if named:
            _names(axes, points)

    return draw(plot, width=width, height=height, label=label, only_ticks=not named)


def _bar(deviation: float) -> float | None:
    return None if np.isnan(deviation) or deviation == 0 else deviation


def _horizontal(axes: Any, values: Sequence[float]) -> None:
    """Label the axis of multiply-adds: at round values of every power of ten, the more the narrower it is."""
    low, high = min(values), max(values)
    axes.set_xlim(low / 1.35, high * 1.35)
    factor, symbol = to_units([high])
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=_ticks(high / low)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * factor:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"multiply-adds per sample{', ' + _NAMES[symbol] if symbol else ''} (logarithmic)")
    axes.tick_params(length=0, which="both")


def _ticks(span: float) -> tuple[float, ...]:
    """Return the values between 1 and 10 that are labelled, for an axis of this span (largest / smallest)."""
    if span < 20:
        return (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    return (1.0, 2.0, 5.0) if span < 200 else (1.0,)


_NAMES = {"k": "thousands", "M": "millions", "G": "billions"}


def _names(axes: Axes, points: Sequence[_Point]) -> None:
    """Write every method's name beside its point, on the side that has room."""
    low, high = np.log(axes.get_xlim())
    for point in points:
        right = (np.log(point.x) - low) / (high - low) < 0.72
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(11 if right else -11, 7),
            textcoords="offset points",
            ha="left" if right else "right",
            color=series(point.colour),
            fontsize=13,
            fontweight="bold",
        )
    axes.spines["bottom"].set_color(MUTED)
