"""Table of a study on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from sparsemtl.study.tables import Cell, StudyTable


@dataclass(frozen=True)
class PrintedTable:
    """Table of a study as text.

    Attributes:
        title: title of the table.
        heads: name of every column, with its unit on a second line.
        rows: label of every setting, then a text per column.
        note: note below the table; "" without one.
        weak: weak points of the study's evidence.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str
    weak: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, table: StudyTable, weak: Sequence[str] = ()) -> PrintedTable:
        """Return the texts of a table, and weak points to print below it."""
        heads = [*(f"{name}\n{unit}" for name, unit in table.headers()), "seeds"]
        rows = [[row.label, *map(_figure, row.cells), str(row.seeds)] for row in table.rows()]
        return cls(table.title, heads, rows, table.note, list(weak))


def show_study(table: PrintedTable) -> None:
    """Print a table of a study; numbers are never wrapped, even if the terminal is too narrow."""
    drawn = Table("method", title=table.title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in zip(table.heads, *(row[1:] for row in table.rows), strict=True):
        width = max(len(line) for text in column for line in text.split("\n"))
        drawn.add_column(column[0], justify="right", no_wrap=True, min_width=width)
    for row in table.rows:
        drawn.add_row(*row)
    console = Console(highlight=False, markup=False)
    drawn.columns[0].min_width = max(len(word) for row in table.rows for word in row[0].split())
    console.width = max(console.width, console.measure(drawn, options=console.options.update_width(10_000)).minimum)
    console.print(drawn)
    if table.note:
        console.print(table.note)
    if table.weak:
        console.print("The evidence of this study is weak:")
        for point in table.weak:
            console.print(Padding(f"- {point}", (0, 0, 0, 2)))


def _figure(cell: Cell) -> str:
    return "\n".join(part for part in (cell.text, cell.deviation and f"±{cell.deviation}", cell.note) if part)
