"""Tables of the command line: results of a run or a study, and the members of registries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.registry.parameters import Parameter
from sparsemtl.registry.registry import Registry
from sparsemtl.runs.schema import SECTIONS, Keys, in_yaml_words
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.views.tables import MISSING, cell_text
from sparsemtl.views.tables import Table as PlainTable


def show(what: RenderableType) -> None:
    """Print to standard output, as wide as the terminal; plain text without a terminal."""
    Console(highlight=False, markup=False).print(what)


def rich_table(table: PlainTable) -> Table:
    """Return a table of ours in rich's form, which wraps long texts."""
    drawn = Table(*table.head, title=table.title or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    _fold(drawn)
    for row in table.rows:
        drawn.add_row(*map(cell_text, row))
    drawn.caption = "\n".join(table.notes) or None
    drawn.caption_justify = "left"
    return drawn


def show_whole(table: Table) -> None:
    """Print a table, no cell of which is wrapped, even if the terminal is too narrow."""
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, console.measure(table, options=console.options.update_width(10_000)).maximum)
    console.print(table)


def show_run(folder: Path) -> None:
    """Print per task the primary metric and the network that `sharing: auto` chose, and the path of the report."""
    run = RunFolder(folder)
    summary = run.read_summary()
    choice = summary.get("architecture", {}).get("choice", {})
    table = Table("task", *(["network"] if choice else []), "metric", box=None, pad_edge=False)
    for split in ("validation", "test"):
        table.add_column(split, justify="right")
    for task, entry in summary["tasks"].items():
        metric = entry["primary"]
        values = (entry[split].get(metric) for split in ("validation", "test"))
        network = [choice[task]] if choice else []
        table.add_row(task, *network, metric, *(MISSING if value is None else f"{value:.4f}" for value in values))
    show(table)
    print(f"Report: {run.report}" if run.report.exists() else f"Results: {run.path}")


def overview(plain: Mapping[str, Keys], registries: Mapping[str, Registry[Any]]) -> RenderableType:
    """Return the overview of keys and registries, each with its section of a configuration.

    Args:
        plain: name -> keys without a registry.
        registries: name -> registry.
    """
    sections = {id(registry): section for section, (registry, _) in SECTIONS.items()}
    table = _table("WHAT", "section", "members or keys")
    table.columns[1].no_wrap = True
    for what, keys in plain.items():
        table.add_row(what, _NO_SECTION.get(what, what), ", ".join(keys))
    for what, registry in registries.items():
        table.add_row(what, sections.get(id(registry), ""), ", ".join(registry))
    return Group(
        table,
        "`sparsemtl list WHAT` shows parameters and sources, `sparsemtl list WHAT NAME` explains one. WHAT may also be "
        "a section or a key.",
    )


_NO_SECTION = {"run": "(top level)", "study": "(of a study)", "search": "search (of a study)"}


def members(registry: Registry[Any]) -> Table:
    """Return the table of all members of a registry with source, parameters and defaults."""
    table = _table("name", "what it is")
    for name in registry:
        parameters = Table("parameter", "default", "values", box=None, pad_edge=False)
        _fold(parameters)
        for parameter in registry.parameters(name).values():
            parameters.add_row(parameter.name, _default(parameter), in_yaml_words(parameter.kind))
        table.add_row(name, Group(*_about(registry, name), *([parameters] if parameters.row_count else [])))
    return table


def member(registry: Registry[Any], name: str) -> RenderableType:
    """Return one member with the meaning of its parameters, as a list, which also fits a narrow terminal."""
    return Group(*_about(registry, name), *_explained(registry.parameters(name).values()))


def explained_keys(what: str, keys: Keys, name: str | None = None) -> RenderableType:
    """Return keys with their meaning.

    Args:
        what: owner of the keys, for messages.
        keys: the keys.
        name: one of them, to return it alone.

    Raises:
        ConfigError: if `name` is none of them.
    """
    if name is not None and name not in keys:
        raise ConfigError(unknown_name(f"{what} key", name, keys))
    return Group(*_explained(parameter for key, parameter in keys.items() if name in (None, key)))


def _explained(parameters: Iterable[Parameter]) -> Iterator[RenderableType]:
    for parameter in parameters:
        meaning = f"{in_yaml_words(parameter.kind)}\n{parameter.meaning}".rstrip()
        yield f"\n{parameter.name}: {_default(parameter)}"
        yield Padding(meaning, (0, 0, 0, 4))


def _about(registry: Registry[Any], name: str) -> Iterator[str]:
    yield registry.summary(name)
    if aliases := registry.aliases(name):
        yield f"Also: {', '.join(aliases)}"
    if source := registry.source(name):
        yield f"Source: {source}"


def _default(parameter: Parameter) -> str:
    """Return a default as in YAML."""
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
    """Wrap long words instead of cutting them, in a narrow terminal."""
    for column in table.columns:
        column.overflow = "fold"
