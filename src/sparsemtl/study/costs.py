"""Cost of a study's methods: multiply-adds, weights and latency of the networks of all tasks, compacted and not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparsemtl.study.figures import Spread
from sparsemtl.study.results import StudyResults, run_level
from sparsemtl.study.tables import StudyTable, to_units

if TYPE_CHECKING:
    import pandas as pd

SPLIT = "cost"
"""Value of the column `split` in rows of `results.csv` that hold a cost."""
MACS, ENCODER_MACS, WEIGHTS, LATENCY = "macs", "encoder_macs", "weights", "milliseconds"
NETWORKS, BATCH_SIZE, THREADS, FAILURES = "networks", "batch_size", "threads", "not_compacted"
_UNCOMPACTED = "uncompacted_"
"""Prefix of the figures of the uncompacted networks."""


@dataclass(frozen=True)
class _CostColumn:
    """Column of costs.

    Attributes:
        title: its heading.
        unit: unit of its figures, such as "per sample".
        metric: name of the figure in the results.
        contest: mark the lowest value as the best one; not for times, which may be measured beside other work.
    """

    title: str
    unit: str
    metric: str
    contest: bool = True


_BRIEF = (
    _CostColumn("multiply-adds", "per sample", MACS),
    _CostColumn("weights", "", WEIGHTS),
    _CostColumn("latency", "ms", LATENCY, contest=False),
)
"""Columns beside the tasks' figures."""
_FULL = (
    _CostColumn("networks", "", NETWORKS, contest=False),
    _CostColumn("multiply-adds", "per sample", MACS),
    _CostColumn("of the encoder", "per sample", ENCODER_MACS),
    _CostColumn("uncompacted", "per sample", f"{_UNCOMPACTED}{MACS}", contest=False),
    _CostColumn("weights", "", WEIGHTS),
    _CostColumn("uncompacted weights", "", f"{_UNCOMPACTED}{WEIGHTS}", contest=False),
    _CostColumn("latency", "ms", LATENCY, contest=False),
    _CostColumn("uncompacted latency", "ms", f"{_UNCOMPACTED}{LATENCY}", contest=False),
)
"""Columns of the table of costs."""


def cost_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (metric, value) of a run's cost, as in `results.csv`; nothing if the run was not measured."""
    cost = summary.get("cost")
    if not cost:
        return
    for prefix, part in (("", cost["compacted"]), (_UNCOMPACTED, cost["uncompacted"])):
        for metric in (MACS, ENCODER_MACS, WEIGHTS, LATENCY):
            yield f"{prefix}{metric}", part[metric]
    yield NETWORKS, len(cost["networks"])
    yield FAILURES, sum(bool(network["failure"]) for network in cost["networks"])
    yield BATCH_SIZE, cost["batch_size"]
    yield THREADS, cost["threads"]


def with_costs(table: StudyTable, results: StudyResults) -> StudyTable:
    """Return the table with the columns of `_BRIEF` added; the same table if no run was measured."""
    columns = [column for column in _BRIEF if column.title not in table.higher]
    return _added(table, results, columns) if measured(results) else table


def cost_table(results: StudyResults) -> StudyTable | None:
    """Return the table of settings against the columns of `_FULL`; None if no run was measured."""
    if not measured(results):
        return None
    empty = results.settings[[]]
    methods = results.settings["method"]
    named = dict(zip(methods.index, methods, strict=True))
    nothing = StudyTable("cost", {}, {}, {}, Spread(empty.copy(), empty.copy(), empty.copy()), named, "")
    return _added(nothing, results, _FULL)


def measured(results: StudyResults) -> bool:
    """Return True if a run of the study was measured."""
    return bool((results.frame["metric"][results.frame["split"] == SPLIT] == MACS).any())


def _cost_note(results: StudyResults) -> str:
    """Return the note below a table with costs: their definition and conditions."""
    size, threads = (_range(results, metric) for metric in (BATCH_SIZE, THREADS))
    note = (
        "Cost: of the compacted networks that together compute every task once; multiply-adds are those of "
        f"convolutions, linear and recurrent layers. Latency: median of one batch of {size} samples on "
        f"{threads} {'thread' if threads == '1' else 'threads'}, measured at the end of each run on the machine that "
        "trained it, possibly beside other work."
    )
    failures = _figures(results, FAILURES)
    return note + (
        f" Networks that could not be compacted are counted as they are: {int(failures.sum())} (the run's report says "
        "why)."
        if failures.sum()
        else ""
    )


def _added(table: StudyTable, results: StudyResults, columns: Sequence[_CostColumn]) -> StudyTable:
    mean, std, n = (part.copy() for part in (table.figures.mean, table.figures.std, table.figures.n))
    higher, units = dict(table.higher), dict(table.units)
    for column in columns:
        figures = run_level(results, column.metric)
        factor, symbol = (1.0, "") if column.unit == "ms" else to_units(figures.mean[column.metric])
        mean[column.title] = figures.mean[column.metric] * factor
        std[column.title] = figures.std[column.metric] * factor
        n[column.title] = figures.n[column.metric]
        higher[column.title] = False if column.contest else None
        units[column.title] = " ".join(part for part in (symbol, column.unit) if part)
    note = " ".join(part for part in (table.note, _cost_note(results)) if part)
    return replace(table, higher=higher, units=units, figures=Spread(mean, std, n), note=note)


def _figures(results: StudyResults, metric: str) -> pd.Series[float]:
    frame = results.frame
    values: pd.Series[float] = frame["value"][(frame["split"] == SPLIT) & (frame["metric"] == metric)].dropna()
    return values


def _range(results: StudyResults, metric: str) -> str:
    values = _figures(results, metric)
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
