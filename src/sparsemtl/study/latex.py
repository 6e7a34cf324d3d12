"""Tables in LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsemtl.views.tables import Table, Written, cell_text

if TYPE_CHECKING:
    from sparsemtl.study.tables import Cell, StudyTable


def to_latex(table: StudyTable) -> str:
    """Return a table of a study in LaTeX: the best values are bold, deviations small; the baseline stands apart."""
    heads = list(table.headers())
    names = ["method", *(name for name, _ in heads), "seeds"]
    units = ["", *(unit for _, unit in heads), ""]
    rows = [[_text(row.label), *map(_figure, row.cells), str(row.seeds)] for row in table.rows()]
    lines = [_row([_text(name) for name in names]), *([_row([_text(unit) for unit in units])] if any(units) else [])]
    return _tabular("l" + "r" * (len(names) - 1), lines, [_row(row) for row in rows], [table.note])


def plain_latex(table: Table) -> str:
    """Return a table of texts and numbers in LaTeX."""
    right = [any(isinstance(row[i], (int, float, Written)) for row in table.rows) for i in range(len(table.head))]
    rows = [_row([_text(cell_text(value)) for value in row]) for row in table.rows]
    columns = "".join("r" if numbers else "l" for numbers in right)
    return _tabular(columns, [_row([_text(name) for name in table.head])], rows, [table.title, *table.notes])


def _tabular(columns: str, heads: Sequence[str], rows: Sequence[str], notes: Sequence[str]) -> str:
    comments = [f"% {note}" for note in notes if note]
    body = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(["% \\usepackage{booktabs}", *comments, *body]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "  " + " & ".join(cells) + r" \\"


def _figure(cell: Cell) -> str:
    value = _text(cell.text)
    value = rf"\textbf{{{value}}}" if cell.best else value
    deviation = rf" {{\scriptsize $\pm$ {cell.deviation}}}" if cell.deviation else ""
    return value + deviation + (f" ({_text(cell.note)})" if cell.note else "")


def _text(text: str) -> str:
    """Return a text with the characters escaped that have a meaning in LaTeX; numbers get minus signs."""
    if text[:1] in "+-" and text[1:].replace(".", "", 1).isdigit():
        return f"${text}$"
    return "".join(_SPECIAL.get(character, character) for character in text)


_SPECIAL = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"$<$",
    ">": r"$>$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "²": r"$^2$",
    "±": r"$\pm$",
    "–": "--",
    "\N{MINUS SIGN}": "$-$",
    "\N{NO-BREAK SPACE}": "~",
}
"""Character -> its LaTeX."""
