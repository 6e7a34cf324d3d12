"""What the command line shows in tables: the outcome of a run or a study, and what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from sparsemtl.files import read_json
from sparsemtl.parameters import ParameterInfo, parameters_of
from sparsemtl.registry import Registry
from sparsemtl.schema import SECTIONS, in_yaml_words
from sparsemtl.study.tables import MISSING, Cell
from sparsemtl.study.tables import Table as StudyTable
from sparsemtl.training.folder import RunFolder


def show(what: RenderableType) -> None:
    """Print to standard output, as wide as the terminal, in plain text where there is none."""
    Console(highlight=False, markup=False).print(what)


def show_run(folder: Path) -> None:
    """Print every task's primary metric of a run, and where the rest is."""
    place = RunFolder(folder)
    table = Table("task", "metric", box=None, pad_edge=False)
    for split in ("validation", "test"):
        table.add_column(split, justify="right")
    for task, entry in read_json(place.summary)["tasks"].items():
        metric = entry["primary"]
        values = (entry[split].get(metric) for split in ("validation", "test"))
        table.add_row(task, metric, *(MISSING if value is None else f"{value:.4f}" for value in values))
    show(table)
    print(f"Report: {place.report}" if place.report.exists() else f"Results: {place.path}")


def show_study(table: StudyTable) -> None:
    """Print a table of a study; numbers are never broken, even where the terminal is too narrow for them."""
    heads = [f"{name}\n{unit}" for name, unit in table.headers()]
    lines = [[*map(_figure, row.cells), str(row.seeds)] for row in table.rows()]
    drawn = Table("method", title=table.title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in zip([*heads, "seeds"], *lines, strict=True):
        width = max(len(line) for text in column for line in text.split("\n"))
        drawn.add_column(column[0], justify="right", no_wrap=True, min_width=width)
    for row, line in zip(table.rows(), lines, strict=True):
        drawn.add_row(row.label, *line)
    console = Console(highlight=False, markup=False)
    drawn.columns[0].min_width = max(len(word) for row in table.rows() for word in row.label.split())
    console.width = max(console.width, console.measure(drawn, options=console.options.update_width(10_000)).minimum)
    console.print(drawn)


def _figure(cell: Cell) -> str:
    return "\n".join(part for part in (cell.text, cell.deviation and f"±{cell.deviation}", cell.note) if part)


def overview(registries: Mapping[str, Registry[Any]]) -> RenderableType:
    """What can be listed: name -> registry, and the section of a configuration that names a member."""
    sections = {id(registry): section for section, (registry, _) in SECTIONS.items()}
    table = _table("WHAT", "section", "members")
    table.columns[1].no_wrap = True
    for what, registry in registries.items():
        table.add_row(what, sections.get(id(registry), ""), ", ".join(registry))
    return Group(table, "`sparsemtl list WHAT` shows parameters and sources, `sparsemtl list WHAT NAME` explains one.")


def members(registry: Registry[Any]) -> Table:
    """All members of a registry with source, parameters and defaults."""
    table = _table("name", "what it is")
    for name in registry:
        parameters = Table("parameter", "default", "values", box=None, pad_edge=False)
        _fold(parameters)
        for parameter in parameters_of(registry[name]):
            parameters.add_row(parameter.name, _default(parameter), in_yaml_words(parameter.kind))
        table.add_row(name, Group(*_about(registry, name), *([parameters] if parameters.row_count else [])))
    return table


def member(registry: Registry[Any], name: str) -> RenderableType:
    """One member, with what its parameters mean: a list, which a narrow terminal takes as well."""
    lines: list[RenderableType] = [*_about(registry, name)]
    for parameter in parameters_of(registry[name]):
        meaning = f"{in_yaml_words(parameter.kind)}\n{parameter.about}".rstrip()
        lines += [f"\n{parameter.name}: {_default(parameter)}", Padding(meaning, (0, 0, 0, 4))]
    return Group(*lines)


def _about(registry: Registry[Any], name: str) -> Iterator[str]:
    yield registry.summary(name)
    if source := registry.source(name):
        yield f"Source: {source}"


def _default(parameter: ParameterInfo) -> str:
    """A default as YAML writes it."""
    if parameter.required:
        return "required"
    default = parameter.default
    return default if isinstance(default, str) else json.dumps(default, default=str)


def _table(first: str, *others: str, title: str | None = None) -> Table:
    table = Table(first, *others, show_lines=True, title=title)
    _fold(table)
    table.columns[0].no_wrap = True
    return table


def _fold(table: Table) -> None:
    """Never cut a word off, however narrow the terminal."""
    for column in table.columns:
        column.overflow = "fold"
