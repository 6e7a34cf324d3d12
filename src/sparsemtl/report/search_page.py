"""Pareto front of a search in the report of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from sparsemtl.report.charts import Chart
from sparsemtl.report.drawing import INK, draw, series
from sparsemtl.report.words import arrow
from sparsemtl.study.pareto import higher_is_better, objective_figures, pareto_front, pareto_table
from sparsemtl.study.results import StudyResults
from sparsemtl.study.search_options import COSTS
from sparsemtl.views.tables import Table

_WIDE, _TALL = 760, 320
"""Width and height of the chart in pixels."""


@dataclass(frozen=True)
class _ParetoSection:
    """Pareto front as the report shows it.

    Attributes:
        chart: the first objective against the last one, of all settings.
        table: the settings of the front.
    """

    chart: Chart
    table: Table


def pareto_section(results: StudyResults, colours: Mapping[str, int]) -> _ParetoSection | None:
    """Draw the Pareto front of a study; None without several objectives.

    Args:
        results: results of all settings.
        colours: method -> index of its colour.
    """
    table = pareto_table(results)
    if table is None:
        return None
    y, x = results.objectives[0], results.objectives[-1]
    unit = f"{y}{arrow(higher_is_better(results, y))} against {x}{arrow(higher_is_better(results, x))}"
    return _ParetoSection(Chart("All settings and the Pareto front", unit, _chart(results, colours, x, y)), table)


def _chart(results: StudyResults, colours: Mapping[str, int], x: str, y: str) -> Markup:
    figures, front = objective_figures(results), pareto_front(results)

    def plot(axes: Axes) -> None:
        if x in COSTS and (figures[x] > 0).all() and figures[x].max() > 3 * figures[x].min():
            axes.set_xscale("log")
        if len(results.objectives) == 2:
            axes.plot(front[x], front[y], color=INK, linewidth=1, zorder=2)
        for setting, row in figures.iterrows():
            best = setting in front.index
            axes.plot(
                row[x],
                row[y],
                "o",
                color=series(colours[str(results.settings["method"][str(setting)])]),
                markersize=9 if best else 5,
                alpha=1.0 if best else 0.35,
                zorder=3,
            )
        axes.set_xlabel(x)
        axes.tick_params(length=0, which="both")

    return draw(plot, width=_WIDE, height=_TALL, label=f"{y} against {x} of all settings, with the Pareto front")
