"""Tables of results: methods against tasks, mean ± standard deviation over seeds, best values marked.

    results = StudyResults.of(read_results("runs/demo/results.csv"), baseline="stl")
    print(to_markdown(primary_table(best_settings(results))))

prints, per method, the test figures of the setting that is best on validation data; without `best_settings` it prints
the whole grid.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.study.figures import Spread, spread
from sparsemtl.study.results import DELTA, StudyResults, gains, per_seed, plain, ranks, task_level, tuned_settings
from sparsemtl.views.tables import MISSING

if TYPE_CHECKING:
    import pandas as pd

AVERAGE, RANK = "average", "rank"


@dataclass(frozen=True)
class Cell:
    """Cell of a table.

    Attributes:
        value: the mean, NaN if it is missing.
        text: the mean as text, an en dash if it is missing.
        deviation: the standard deviation as text, "" with fewer than two seeds.
        note: "n=2" if fewer seeds have the figure than have the row, else "".
        best: no other row shows a better value; False if another row has the figure of more seeds.
    """

    value: float
    text: str
    deviation: str
    note: str
    best: bool

    @property
    def suffix(self) -> str:
        """Deviation and note behind the mean: " ± 0.1 (n=2)"; "" without either."""
        return (f" ± {self.deviation}" if self.deviation else "") + (f" ({self.note})" if self.note else "")

    def markdown(self) -> str:
        """Return the cell in Markdown; the best value is bold."""
        return (f"**{self.text}**" if self.best else self.text) + self.suffix

    def html(self) -> str:
        """Return the cell as a `td` element; the best value has class `best`, `data-value` is the key for sorting."""
        value = "" if math.isnan(self.value) else f"{self.value:.10g}"
        small = f"<small>{html.escape(self.suffix)}</small>" if self.suffix else ""
        inner = html.escape(self.text).replace("-", "\N{MINUS SIGN}") + small
        return f'<td class="number{" best" if self.best else ""}" data-value="{value}">{inner}</td>'


@dataclass(frozen=True)
class TableRow:
    """Row of a table: one setting.

    Attributes:
        label: name of the setting: "fisher, keep 0.3".
        method: name of its method.
        seeds: number of seeds.
        cells: one per column of the table.
    """

    label: str
    method: str
    seeds: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class StudyTable:
    """Table of settings against tasks.

    Attributes:
        title: name of the metric, or "primary metrics".
        metrics: task -> its metric, one column each.
        higher: column -> True if higher is better, None if no value is marked as the best one. Columns are the tasks,
            then as far as they apply `average` (if all tasks have one metric), `rank` (mean over the tasks), `Δm %` and
            the columns of `study.costs`.
        over: column -> tasks of its mean, for `average`, `rank` and `Δm %`: those that all settings have.
        figures: mean, deviation and number of seeds; one row per setting, one column per key of `higher`.
        methods: setting -> method.
        note: tasks that the means over tasks leave out, and the definition of costs; "" without either.
        units: column -> unit of its figures, for columns that are no tasks.
    """

    title: str
    metrics: Mapping[str, str]
    higher: Mapping[str, bool | None]
    over: Mapping[str, tuple[str, ...]]
    figures: Spread
    methods: Mapping[str, str]
    note: str
    units: Mapping[str, str] = field(default_factory=dict)

    def numbers(self) -> pd.DataFrame:
        """Return all figures; columns are pairs of the column and `mean`, `std` or `n`."""
        import pandas as pd

        parts = {"mean": self.figures.mean, "std": self.figures.std, "n": self.figures.n}
        return pd.concat(parts, axis=1).swaplevel(axis=1)[[(column, part) for column in self.higher for part in parts]]

    def headers(self) -> Iterator[tuple[str, str]]:
        """Yield name of every column, and its metric or unit with an arrow in the better direction."""
        mixed = len(set(self.metrics.values())) > 1
        for column, higher in self.higher.items():
            metric = self.metrics[column] if mixed and column in self.metrics else self.units.get(column, "")
            yield column, " ".join(part for part in (metric, {True: "↑", False: "↓", None: ""}[higher]) if part)

    def rows(self) -> Iterator[TableRow]:
        """Yield the rows, in order."""
        seeds = self.figures.n.max(axis=1).tolist()
        columns = [self._cells(column, seeds) for column in self.higher]
        for i, (label, count) in enumerate(zip(self.figures.mean.index, seeds, strict=True)):
            yield TableRow(label, self.methods[label], count, tuple(cells[i] for cells in columns))

    def _cells(self, column: str, seeds: Sequence[int]) -> list[Cell]:
        """Return the cells of a column.

        Args:
            column: a key of `higher`.
            seeds: number of seeds of every row.
        """
        up, digits = self.higher[column], self._digits(column)
        means, counts = self.figures.mean[column].tolist(), self.figures.n[column].tolist()
        deviations = self.figures.std[column].tolist()
        if column in self.units:  # a cost that is equal for all seeds has no deviation to show
            deviations = [deviation or math.nan for deviation in deviations]
        marks = [False] * len(means) if up is None else _best(means, self._whole(column), digits, higher=up)
        notes = [f"n={n}" if column != RANK and n < most else "" for n, most in zip(counts, seeds, strict=True)]
        cells = zip(means, deviations, notes, marks, strict=True)
        return [_cell(column, mean, deviation, digits, note, best) for mean, deviation, note, best in cells]

    def to_markdown(self) -> str:
        """Return the table in Markdown, with its note below."""
        return to_markdown(self)

    def to_latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs."""
        from sparsemtl.study.latex import to_latex

        return to_latex(self)

    def to_csv(self) -> str:
        """Return the figures as CSV, a row per setting and column."""
        return to_csv([self])

    def _repr_html_(self) -> str:
        """Return the table for notebooks; the best values are bold."""
        head = "".join(f"<th>{html.escape(' '.join(part).strip())}</th>" for part in self.headers())
        rows = "".join(
            f"<tr><td>{html.escape(row.label)}</td>{''.join(map(_notebook_cell, row.cells))}<td>{row.seeds}</td></tr>"
            for row in self.rows()
        )
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr><th>method</th>{head}<th>seeds</th></tr>"
            f"</thead><tbody>{rows}</tbody></table><div>{html.escape(self.note)}</div>"
        )

    def _whole(self, column: str) -> list[bool]:
        """Return per row whether no other row has the figures of a column of more seeds."""
        tasks = [task for task in self.over.get(column, (column,)) if task in self.metrics]
        counts = [self.figures.n[task].tolist() for task in tasks]  # a table of one metric may lack tasks
        most = list(map(max, counts))
        return [all(row[i] == m for row, m in zip(counts, most, strict=True)) for i in range(len(self.figures.mean))]

    def _digits(self, column: str) -> int:
        if column in (RANK, DELTA):
            return 2
        return decimals(self.figures.mean[column], significant=3 if column in self.units else 4)


def table(
    results: StudyResults, metrics: Mapping[str, str], *, title: str, split: str = "test", delta: Spread | None = None
) -> StudyTable:
    """Return the table of settings against tasks, by one metric per task.

    Args:
        results: results of a study, all or `best_settings`.
        metrics: task -> metric, one column each.
        title: title of the table.
        split: `validation` or `test`.
        delta: `gains(results, split)`, computed if it is not given; several tables have it in common.
    """
    higher: dict[str, bool | None] = {task: results.higher_is_better(task, m) for task, m in metrics.items()}
    common = tuple(task for task in metrics if task in results.common)
    over = {}
    figures = task_level(results, metrics, split)
    mean, std, n = figures.mean, figures.std, figures.n
    if len(metrics) > 1 and len(set(metrics.values())) == 1:
        average = per_seed(results, metrics, split)[list(common)].mean(axis=1, skipna=False)
        own = spread(average.to_frame(AVERAGE), results.settings)
        mean[AVERAGE], std[AVERAGE], n[AVERAGE] = own.mean[AVERAGE], own.std[AVERAGE], own.n[AVERAGE]
        higher[AVERAGE], over[AVERAGE] = next(iter(higher.values())), common
    methods = results.settings["method"]
    if (methods != results.baseline).sum() > 1:
        mean[RANK] = ranks(results, mean, {task: bool(higher[task]) for task in common}).mean(axis=1)
        std[RANK], n[RANK], higher[RANK], over[RANK] = math.nan, 0, False, common
    if (methods == results.baseline).any():
        delta = gains(results, split) if delta is None else delta
        for shown, given in ((mean, delta.mean), (std, delta.std), (n, delta.n)):
            shown[DELTA] = given[DELTA]
        higher[DELTA], over[DELTA] = True, results.common
    named = dict(zip(methods.index, methods, strict=True))
    return StudyTable(title, dict(metrics), higher, over, figures, named, _note(results, over))


def primary_table(results: StudyResults, split: str = "test") -> StudyTable:
    """Return the table of all tasks by their primary metrics."""
    names = list(dict.fromkeys(results.primary.values()))
    return table(results, results.primary, title=names[0] if len(names) == 1 else "primary metrics", split=split)


def metric_table(results: StudyResults, metric: str, split: str = "test") -> StudyTable:
    """Return the table of the tasks that have a metric.

    Raises:
        ParameterError: if no task has it.
    """
    having = _tasks_by_metric(results, split)
    if metric not in having:
        raise ParameterError(unknown_name("metric", metric, having))
    return table(results, having[metric], title=metric, split=split)


def metric_tables(results: StudyResults, split: str = "test") -> dict[str, StudyTable]:
    """Return metric -> table of the tasks that have it, without the table that `primary_table` returns."""
    delta = gains(results, split)
    return {
        metric: table(results, metrics, title=metric, split=split, delta=delta)
        for metric, metrics in _tasks_by_metric(results, split).items()
        if metrics != results.primary
    }


def _tasks_by_metric(results: StudyResults, split: str) -> dict[str, dict[str, str]]:
    """Return metric -> the tasks that have it, each with the metric."""
    frame = results.frame[(results.frame["split"] == split) & (results.frame["task"] != "")]
    return {
        str(metric): {str(task): str(metric) for task in rows["task"].unique()}
        for metric, rows in frame.groupby("metric", sort=False)
    }


def to_markdown(table: StudyTable) -> str:
    """Return the table in Markdown, with its note below."""
    heads = ["method", *(f"{name} {unit}" for name, unit in table.headers()), "seeds"]
    lines = [_line(heads), "| :--- |" + " ---: |" * (len(heads) - 1)]
    lines += [_line([row.label, *(cell.markdown() for cell in row.cells), str(row.seeds)]) for row in table.rows()]
    return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def to_csv(tables: Iterable[StudyTable]) -> str:
    """Return tables as CSV, a row per table, setting and column, with mean, std, n and a mark of the best.

    The column `tasks` names the task of the figure, or all tasks of a mean over tasks.
    """
    import pandas as pd

    return pd.DataFrame(record for table in tables for record in _records(table)).to_csv(index=False)


def _records(table: StudyTable) -> Iterator[dict[str, Any]]:
    rows = list(table.rows())
    deviations = {column: table.figures.std[column].tolist() for column in table.higher}
    counts = {column: table.figures.n[column].tolist() for column in table.higher}
    for i, row in enumerate(rows):
        for (column, higher), cell in zip(table.higher.items(), row.cells, strict=True):
            yield {
                "table": table.title,
                "setting": row.label,
                "method": row.method,
                "column": column,
                "tasks": ", ".join(table.over.get(column, (column,))),
                "metric": table.metrics.get(column, table.units.get(column, "")),
                "higher_is_better": higher,
                "mean": cell.value,
                "std": deviations[column][i],
                "n": "" if column == RANK else counts[column][i],
                "best": cell.best,
            }


def decimals(values: Iterable[float], *, significant: int = 4) -> int:
    """Return the number of digits after the point, 0 to 6, for `significant` digits of a column's median size."""
    sizes = sorted(abs(value) for value in values if value and math.isfinite(value))
    typical = sizes[len(sizes) // 2] if sizes else 1.0
    return min(max(significant - 1 - math.floor(math.log10(typical)), 0), 6)


def to_units(values: Iterable[float]) -> tuple[float, str]:
    """Return factor and symbol of the unit for the largest value of a column: 1e-6 and "M" for millions."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    steps = ((1e10, 1e-9, "G"), (1e7, 1e-6, "M"), (1e4, 1e-3, "k"))
    return next(((factor, symbol) for least, factor, symbol in steps if largest >= least), (1.0, ""))


def _notebook_cell(cell: Cell) -> str:
    text = html.escape(cell.text + cell.suffix)
    return f"<td>{f'<b>{text}</b>' if cell.best else text}</td>"


def _note(results: StudyResults, over: Mapping[str, tuple[str, ...]]) -> str:
    return " ".join(filter(None, [_note_on_tasks(results, over), *_notes_on_tuning(results)]))


def _notes_on_tuning(results: StudyResults) -> Iterator[str]:
    """Yield the values of which validation chose one per row; nothing for a table of all of them."""
    if len(tuned_settings(results).settings) == len(results.settings):
        for key, values in results.tuned.items():
            tried = ", ".join(map(plain, values))
            yield f"{key} of each row is the best on validation data, mean over seeds, of the values tried: {tried}."


def _note_on_tasks(results: StudyResults, over: Mapping[str, tuple[str, ...]]) -> str:
    left = [task for task in results.tasks if task not in results.common]
    if not left or not over:
        return ""
    if not results.common:
        return f"There is no task that all methods have: no {', '.join(over)}."
    return f"Tasks that not all methods have are left out of {', '.join(over)}: {', '.join(left)}."


def _best(means: Sequence[float], whole: Sequence[bool], digits: int, *, higher: bool) -> list[bool]:
    """Return per row whether it has the best value as shown, several if they look equal; of two values at least.

    Args:
        means: values of the rows; NaN is not compared.
        whole: rows to compare.
        digits: number of digits after the point that are shown.
        higher: higher is better.
    """
    shown = np.where(whole, np.round(means, digits), math.nan)
    if np.isfinite(shown).sum() < 2:
        return [False] * len(means)
    best: list[bool] = (shown == (np.nanmax(shown) if higher else np.nanmin(shown))).tolist()
    return best


def _cell(column: str, mean: float, std: float, digits: int, note: str, best: bool) -> Cell:
    if math.isnan(mean):
        return Cell(mean, MISSING, "", "", False)
    shown = round(mean, digits) + 0.0  # never "-0.00"
    text = f"{shown:+.{digits}f}" if column == DELTA else f"{shown:.{digits}f}"
    return Cell(mean, text, "" if math.isnan(std) else f"{std:.{digits}f}", note, best)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
