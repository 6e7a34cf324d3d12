"""Tables as text and as HTML. Every text in HTML is escaped: names of tasks, layers and files come from users."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Shaded:
    """Number that is shown with a background.

    Attributes:
        value: the number.
        share: strength of the background in [0, 1].
    """

    value: float
    share: float


@dataclass(frozen=True)
class Written:
    """Number that is shown in a form of its own.

    Attributes:
        value: the number.
        text: its form.
    """

    value: float
    text: str


Value = str | int | float | Shaded | Written | None
"""Cell of a table: text is aligned to the left, a number to the right; None is shown as an en dash."""


@dataclass(frozen=True)
class Table:
    """Table with a title and notes below.

    Attributes:
        head: titles of the columns.
        rows: one value per column.
        title: line above the table; "" for none.
        notes: lines below the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Value]]
    title: str = ""
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return the table as aligned lines."""
        lines = [list(self.head), *([cell_text(value) for value in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        right = [self._is_right(column) for column in range(len(self.head))]
        aligned = (
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
            for line in lines
        )
        return "\n".join([*([self.title] if self.title else []), *aligned, *self.notes])

    def markdown(self) -> str:
        """Return the table in Markdown, with its title above and its notes below."""
        sides = [" ---: " if self._is_right(column) else " :--- " for column in range(len(self.head))]
        lines = [_pipes(self.head), f"|{'|'.join(sides)}|", *(_pipes(map(cell_text, row)) for row in self.rows)]
        return "\n".join([*([self.title, ""] if self.title else []), *lines, *(f"\n{note}" for note in self.notes)])

    def csv(self) -> str:
        """Return head and rows as CSV; numbers are not rounded, a missing value is empty."""
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.head)
        writer.writerows([v.value if isinstance(v, (Shaded, Written)) else v for v in row] for row in self.rows)
        return file.getvalue()

    def html(self) -> str:
        """Return the table as an HTML element, with every text escaped."""
        right = [self._is_right(column) for column in range(len(self.head))]
        head = "".join(_tag("th", _side(r), name) for name, r in zip(self.head, right, strict=True))
        rows = "".join(
            f"<tr>{''.join(_cell(value, r) for value, r in zip(row, right, strict=True))}</tr>" for row in self.rows
        )
        caption = _tag("caption", "text-align: left; white-space: nowrap", self.title) if self.title else ""
        notes = "".join(_tag("div", "", note) for note in self.notes)
        return f"<div><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}</div>"

    def _is_right(self, column: int) -> bool:
        """Return True for a column with numbers and without texts."""
        values = [row[column] for row in self.rows]
        return any(value is not None for value in values) and not any(isinstance(value, str) for value in values)


def cell_text(value: Value) -> str:
    """Return a cell as text: four significant digits of a float, groups of three digits of a count."""
    if isinstance(value, Shaded):
        return f"{value.value:.3f}"
    if isinstance(value, Written):
        return value.text
    if value is None or value != value:
        return MISSING
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value


def html_of(tables: Iterable[Table]) -> str:
    """Return tables as HTML, one below the other."""
    return "".join(table.html() for table in tables)


def text_of(tables: Iterable[Table]) -> str:
    """Return tables as text, with an empty line between them."""
    return "\n\n".join(table.text() for table in tables)


def short_names(names: Sequence[str]) -> list[str]:
    """Drop the leading parts that all names share, and "weight" at the end; a number keeps the name before it."""
    parts = [name.split(".") for name in names]
    parts = [p[:-1] if p[-1] == "weight" and len(p) > 1 else p for p in parts]
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 and not p[1].isdigit() for p in parts):
        parts = [p[1:] for p in parts]
    return [".".join(p) for p in parts]


def _cell(value: Value, right: bool) -> str:
    style = _side(right)
    if isinstance(value, Shaded):
        style += f"; background: rgba(31, 119, 180, {0.6 * min(max(value.share, 0.0), 1.0):.3f})"
    return _tag("td", style, cell_text(value))


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _side(right: bool) -> str:
    return f"text-align: {'right' if right else 'left'}"


def _tag(name: str, style: str, text: str) -> str:
    return f'<{name} style="{style}">{html.escape(text)}</{name}>' if style else f"<{name}>{html.escape(text)}</{name}>"
