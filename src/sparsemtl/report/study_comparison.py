"""Comparison of a study's methods in its report: intervals, mean ranks, pairs, profiles and bars per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from sparsemtl.report.charts import PAGE, Chart
from sparsemtl.report.drawing import draw
from sparsemtl.report.words import arrow
from sparsemtl.study.results import StudyResults, task_level
from sparsemtl.study.statistics import comparison, friedman, profiles
from sparsemtl.views.comparisons import Ranked, draw_profiles, draw_ranks, draw_task_bars, ranks_height
from sparsemtl.views.tables import Table

_WIDE = 620
"""Width of a wide chart in pixels; a narrower window scrolls it."""
_MOST_BARS = 120


@dataclass(frozen=True)
class _StudyComparison:
    """Differences between methods, as the report of a study shows them.

    Attributes:
        tables: `intervals` and `pairs`, as far as there is enough to compare.
        test: the Friedman test in words; "" without.
        ranks: critical-difference diagram; None without a test.
        profiles: performance profiles; None for fewer than three methods or two blocks.
        bars: bars per task, one chart per metric that several tasks have.
    """

    tables: Mapping[str, Table]
    test: str
    ranks: Markup | None
    profiles: Chart | None
    bars: list[Chart]


def study_comparison(best: StudyResults, colours: Mapping[str, int]) -> _StudyComparison:
    """Compare the methods of a study.

    Args:
        best: results of one setting per method.
        colours: method -> index of its colour.
    """
    tables = comparison(best)
    of_setting = {str(setting): colours[str(method)] for setting, method in best.settings["method"].items()}
    if "ranks" not in tables:
        return _StudyComparison(tables, "", None, None, _bars(best, of_setting))
    test = friedman(best)
    ranked = [Ranked(name, of_setting[name], rank) for name, rank in test.ranks.items()]
    groups = test.groups()
    diagram = draw(
        lambda axes: draw_ranks(axes, ranked, groups, test.critical_difference, palette=PAGE),
        width=_WIDE,
        height=round(44 * ranks_height(len(ranked), len(groups))),
        label="mean ranks with critical difference",
    )
    return _StudyComparison(tables, str(test), diagram, _profiles(best, of_setting), _bars(best, of_setting))


def _profiles(best: StudyResults, colours: Mapping[str, int]) -> Chart | None:
    if not best.common:
        return None  # the baseline, which takes part, has other tasks
    shares = profiles(best)
    columns = {str(name): shares[name].tolist() for name in shares}
    svg = draw(
        lambda axes: draw_profiles(axes, shares.index.tolist(), columns, colours, palette=PAGE),
        width=_WIDE,
        height=260,
        label="performance profiles",
    )
    return Chart("Performance profile", "fraction of tasks and seeds ↑", svg)


def _bars(best: StudyResults, colours: Mapping[str, int]) -> list[Chart]:
    """Draw the bars of every metric that is the primary one of several tasks; none for one method or too many bars."""
    figures = task_level(best, best.primary, "test")
    charts = []
    for metric in dict.fromkeys(best.primary.values()):
        tasks = [task for task, primary in best.primary.items() if primary == metric]
        if len(tasks) < 2 or len(colours) < 3 or len(tasks) * len(colours) > _MOST_BARS:
            continue
        mean, std = (
            {str(name): [float(part.loc[name, task]) for task in tasks] for name in best.settings.index}
            for part in (figures.mean, figures.std)
        )
        svg = draw(
            partial(draw_task_bars, tasks=tasks, means=mean, deviations=std, colours=colours, palette=PAGE),
            width=_WIDE,
            height=280,
            label=f"{metric} of every task",
        )
        direction = arrow(best.higher_is_better(tasks[0], metric))
        charts.append(Chart("Every task", f"{metric}{direction}", svg))
    return charts
