"""Sections for the architecture, the sharing method and the balancer: the figures and tables that they declared.

The declarations stand in `summary.json`, see `sparsemtl.networks.declarations`, and the values of figures in
`metrics.csv`. A figure that was logged without a declaration is drawn under its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsemtl.networks.declarations import Figure, SummaryTable, Value
from sparsemtl.report.charts import Chart, line_chart
from sparsemtl.report.drawing import NEUTRAL
from sparsemtl.report.words import arrow, number, percent
from sparsemtl.storage.run_folder import RunRecord
from sparsemtl.views.plots import Line

TITLES = {"architecture": "Architecture", "sharing": "Sharing method", "balancing": "Balancing"}
"""Split of `metrics.csv`, and key of the declarations -> heading of the section."""


@dataclass(frozen=True)
class _Cell:
    """_Cell of a table, ready to be shown.

    Attributes:
        kind: how it is shown; a `fraction` has a bar beside its text, `heat` is the shade behind it.
        text: the value in words, an en dash if it is unknown.
        value: length of the bar or depth of the shade, in [0, 1].
    """

    kind: Literal["text", "number", "fraction", "heat"]
    text: str
    value: float = 0.0


@dataclass(frozen=True)
class _TableView:
    """Table of a section.

    Attributes:
        title: heading.
        caption: text below the heading, "" for none.
        columns: heading of every column, and how its cells are shown.
        rows: cells of every row; the first one names the row.
        many: the table has too many shaded columns for texts in them.
    """

    title: str
    caption: str
    columns: list[tuple[str, str]]
    rows: list[list[_Cell]]
    many: bool


@dataclass(frozen=True)
class Section:
    """Section of the architecture, the sharing method or the balancer.

    Attributes:
        title: heading.
        tables: tables of the end of training.
        charts: one chart per figure that changed.
        constants: declared figures that did not change -> their values in words.
        by_task: a chart has one line per task.
    """

    title: str
    tables: list[_TableView]
    charts: list[Chart]
    constants: Mapping[str, str]
    by_task: bool


def section(run: RunRecord, part: str, colours: Mapping[str, int]) -> Section | None:
    """Return the section of a part of the run; None if there is nothing to show.

    Args:
        run: the run.
        part: a key of `TITLES`.
        colours: task -> number of its colour.
    """
    declared = run.summary.get("declarations", {}).get(part, {})
    figures = [Figure(**figure) for figure in declared.get("figures", ())]
    tables = [_table_view(SummaryTable(**table)) for table in declared.get("tables", ())]
    curves = {figure: _curves(run, part, figure, colours) for figure in [*figures, *_undeclared(run, part, figures)]}
    changing = [figure for figure, lines in curves.items() if any(map(_changes, lines.values()))]
    charts = [_chart(figure, curves[figure], colours) for figure in changing]
    constants = {
        figure.title: _constant(curves[figure]) for figure in figures if curves[figure] and figure not in changing
    }
    if not (tables or charts or constants):
        return None
    name = run.summary.get("axes", {}).get(part)
    title = f"{TITLES[part]}: {name}" if name else TITLES[part]
    return Section(title, tables, charts, constants, any(figure.per_task for figure in changing))


def _undeclared(run: RunRecord, part: str, figures: Sequence[Figure]) -> list[Figure]:
    """Return a declaration for every figure that the part logged without one."""
    declared = {(figure.name, figure.per_task) for figure in figures}
    logged = dict.fromkeys((row.name, bool(row.task)) for row in run.metrics if row.split == part)
    return [
        Figure(name, name.replace("_", " "), "" if per_task else "all tasks together", per_task)
        for name, per_task in logged
        if (name, per_task) not in declared
    ]


def _curves(run: RunRecord, part: str, figure: Figure, colours: Mapping[str, int]) -> dict[str, Mapping[int, float]]:
    """Return task -> values over the epochs, of the tasks that have any; "" is the task of a figure of all tasks."""
    curves = {task: run.curve(part, task, figure.name) for task in (colours if figure.per_task else [""])}
    return {task: curve for task, curve in curves.items() if curve}


def _changes(curve: Mapping[int, float]) -> bool:
    low, high = min(curve.values()), max(curve.values())
    return high - low > 1e-6 * max(1.0, abs(high))


def _chart(figure: Figure, curves: Mapping[str, Mapping[int, float]], colours: Mapping[str, int]) -> Chart:
    lines = [
        Line(list(curve), list(curve.values()), colours.get(task, NEUTRAL), dots=len(curve) < 30)
        for task, curve in curves.items()
    ]
    svg = line_chart(lines, label=f"{figure.title} over epochs{'' if figure.per_task else ', all tasks together'}")
    return Chart(figure.title, f"{figure.unit}{arrow(figure.higher_is_better)}", svg)


def _constant(curves: Mapping[str, Mapping[int, float]]) -> str:
    """Return the last value per task, or the one value of all tasks."""
    values = {task: number(list(curve.values())[-1]) for task, curve in curves.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({task})" for task, value in values.items())


def _table_view(table: SummaryTable) -> _TableView:
    kinds = [_kind(table, column, i) for i, column in enumerate(table.columns)]
    fractions = [column in table.fractions for column in table.columns]
    rows = [[_cell(*cell) for cell in zip(row, kinds, fractions, strict=True)] for row in table.rows]
    columns = list(zip(table.columns, kinds, strict=True))
    return _TableView(table.title, table.caption, columns, rows, many=len(table.shaded) > 10)


def _kind(table: SummaryTable, column: str, index: int) -> Any:
    if column in table.shaded:
        return "heat"
    if column in table.fractions:
        return "fraction"
    values = [row[index] for row in table.rows if row[index] is not None]
    return "number" if values and not any(isinstance(value, str) for value in values) else "text"


def _cell(value: Value, kind: Any, fraction: bool) -> _Cell:
    if isinstance(value, str):
        return _Cell("text", value)
    if value is None:
        return _Cell("text" if kind == "text" else "number", number(None))
    if fraction:
        text = percent(value)
    elif isinstance(value, int):
        text = f"{value:,}"
    else:
        text = f"{value:.2f}" if kind == "heat" else number(value)
    return _Cell(kind, text, min(abs(float(value)), 1.0))
