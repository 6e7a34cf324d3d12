"""Declarations of what a part of a run shows in its report: figures over the epochs, and tables of the end.

An architecture, a sharing method or a balancer declares a `Figure` for every name that its `metrics()` yields, and
returns a `SummaryTable` for everything else that a reader of the report wants to see. Declarations are data: they are
stored in `summary.json`, and the report draws them without knowledge of the class that made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsemtl.errors import ParameterError

Value = str | int | float | None
"""Cell of a table; None is an unknown value."""


@dataclass(frozen=True)
class Figure:
    """A number that is logged after every epoch and drawn over the epochs.

    Attributes:
        name: name under which `metrics()` yields the number.
        title: heading of the chart.
        unit: unit and range of the number, such as "fraction of the weights".
        per_task: there is one number per task; otherwise one for all tasks together.
        higher_is_better: direction of improvement; None if there is none.

    Examples:
        >>> Figure("density", "Density", "fraction of the weights that a task uses")
        Figure(name='density', title='Density', unit='fraction of the weights that a task uses', per_task=True, \
higher_is_better=None)
    """

    name: str
    title: str
    unit: str = ""
    per_task: bool = True
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class SummaryTable:
    """A table of the state at the end of training.

    Attributes:
        title: heading of the table.
        columns: headings of the columns. The first column names the rows.
        rows: one cell per column in each row.
        caption: text below the heading, "" for none.
        fractions: headings of columns of fractions in [0, 1]. They are written in per cent, beside a bar.
        shaded: headings of columns of numbers in [-1, 1]. Their cells are shaded by the absolute value, as in a heat
            map, in place of a bar.

    Raises:
        ParameterError: if a row has not one cell per column, or `fractions` or `shaded` names no column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    fractions: Sequence[str] = ()
    shaded: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (row := next((row for row in self.rows if len(row) != len(self.columns)), None)) is not None:
            raise ParameterError(
                f"table {self.title!r}: expected {len(self.columns)} cells per row, one per column, got {list(row)}."
            )
        if unknown := {*self.fractions, *self.shaded} - {*self.columns}:
            raise ParameterError(
                f"table {self.title!r}: {', '.join(sorted(unknown))} is not among the columns {list(self.columns)}."
            )


def to_record(figures: Iterable[Figure], tables: Iterable[SummaryTable]) -> dict[str, Any]:
    """Return declarations as plain mappings and lists, for `summary.json`."""
    return {"figures": [asdict(figure) for figure in figures], "tables": [asdict(table) for table in tables]}
