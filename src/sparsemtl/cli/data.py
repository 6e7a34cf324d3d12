"""Commands for data sets: `sparsemtl data check`, `sparsemtl data list`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.options import DataRoot

if TYPE_CHECKING:
    from sparsemtl.data import TaskData
    from sparsemtl.data.check import Inspection, ReadResult
    from sparsemtl.data.requirements import Found, Package

_MOST_ERRORS = 20
"""Number of damaged samples that are printed."""

app = typer.Typer(
    help="Data sets: files that are there, files that are missing, and how to get them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_datasets(data_root: DataRoot = None) -> None:
    """List all data sets and the state of their files."""
    from rich.table import Table

    from sparsemtl.cli.terminal import show
    from sparsemtl.data import DATASETS
    from sparsemtl.data.check import inspect

    table = Table("data set", "files", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    table.add_column("on disk", justify="right")
    for name in DATASETS:
        inspection = inspect(name, data_root)
        table.add_row(name, inspection.state, amount(inspection.size) if inspection.size else "")
    show(table)


@app.command()
def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A data set, by its name in `sparsemtl list datasets`; or the YAML file of a run or a study, to check "
            "its data and those of its pretraining runs.",
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="Parameters of the data set, such as layout=mat or tasks.birds=photos/birds; for a file, its changes, "
            "as for `sparsemtl run`.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    every: Annotated[bool, typer.Option("--read", help="Decode every sample; this may take long.")] = False,
) -> None:
    """Check the files of a data set; print what is missing and how to get it. Exit with 1 if it cannot be read."""
    if Path(what).suffix in (".yaml", ".yml"):
        sections = _sections_in(Path(what), changes or [])
    else:
        sections = {"": {**_parameters(changes or []), "name": what}}
    failed = 0
    for number, (title, section) in enumerate(sections.items()):
        if title:
            typer.echo(("\n" if number else "") + f"{title}:")
        failed += not _check_section(section, data_root, every)
    if failed:
        raise typer.Exit(1)


def _sections_in(path: Path, changes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return place -> section of the different sections `data` of a run or a study and their pretraining runs.

    Sections that differ in their seed alone read the same files, and count once.

    Raises:
        ConfigError: if the file or a change of it is not valid.
    """
    from sparsemtl.runs.config_file import is_study_file, read_config
    from sparsemtl.runs.pretraining import pretraining_config
    from sparsemtl.runs.validation import data_section
    from sparsemtl.study.grid import read_study

    if is_study_file(path):
        runs = {f"{run.name}: ": run.config for run in read_study(path, changes).runs}
    else:
        runs = {"": read_config(path, changes)}
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, run in runs.items():
        for title, part in ((f"{name}data", run), (f"{name}pretraining.data", pretraining_config(run))):
            if part is not None:
                section = data_section(part)
                found.setdefault(json.dumps({**section, "seed": None}, sort_keys=True), (title, section))
    return dict(found.values())


def _parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a data set from `key=value`."""
    from sparsemtl.runs.changes import assignment, nested

    return nested(map(assignment, assignments))


def _check_section(section: Mapping[str, Any], data_root: Path | None, every: bool) -> bool:
    """Print the state of the data of a section; return True if it can be read.

    Raises:
        ConfigError: if the section is not valid.
    """
    from sparsemtl.data.check import inspect, read
    from sparsemtl.runs import config
    from sparsemtl.runs.validation import data_section

    name = section["name"]
    inspection = inspect(name, section.get("root") or data_root)
    for line in _inspection_lines(inspection):
        typer.echo(line)
    if inspection.state in ("absent", "in part"):
        return False
    if inspection.state == "needs no files" and len(section) == 1:
        return True
    complete = data_section(config.check({"data": dict(section)}, where=f"`sparsemtl data check {name}`"))
    options = {key: value for key, value in complete.items() if key != "name"}
    if "root" in options:
        options["root"] = str(inspection.root)
    reading = read(name, options, every=every)
    for line in _reading_lines(reading):
        typer.echo(line)
    return not (reading.problem or reading.errors)


def _inspection_lines(inspection: Inspection) -> Iterator[str]:
    """Yield the lines about files that are there, files that are missing and how to get them."""
    if inspection.layout is None:
        yield f"{inspection.name} does not declare its files."
        return
    if inspection.layout.remark:
        yield f"{inspection.name}: {inspection.layout.remark}"
    if inspection.state == "needs no files":
        yield f"{inspection.name} needs no files."
    if not inspection.alternatives:
        return
    yield f"{inspection.name} under {inspection.root.absolute()}: {inspection.state}."
    if len(inspection.alternatives) > 1:
        yield f"It needs one of {len(inspection.alternatives)} layouts."
    for packages in inspection.alternatives:
        for package, found in packages:
            yield ""
            yield from _package_lines(package, found)


def _package_lines(package: Package, found: list[Found]) -> Iterator[str]:
    """Yield the lines about one package: its files and, if one is missing, how to get it."""
    yield package.title
    width = max(22, *(len(_state(part)) for part in found))
    for part in found:
        yield f"  {_state(part):<{width}}  {part.expected.about}: {' or '.join(part.expected.patterns)}"
    if any(_is_short(part) for part in found):
        yield f"  source:   {package.source}"
        yield f"  licence:  {package.licence}"
        yield f"  get it:   {package.get}"


def _state(found: Found) -> str:
    """Return the number and size of the files of a kind, or that they are missing."""
    expected = found.expected
    if found.count == 0:
        return "missing (optional)" if expected.optional else "MISSING"
    of = f" of {expected.count:,}" if expected.count and expected.count != found.count else ""
    return f"{found.count:,}{of} file{'' if found.count == 1 and not of else 's'}, {amount(found.size)}"


def _is_short(found: Found) -> bool:
    """Return True if files of a kind are missing, all or some."""
    return found.count < (found.expected.count or 1)


def _reading_lines(reading: ReadResult) -> Iterator[str]:
    """Yield the lines about the result of reading a data set."""
    yield ""
    if reading.problem:
        yield f"It cannot be read. {reading.problem}"
    if reading.data is not None and not reading.problem:
        yield from _data_lines(reading.data)
    if reading.samples:
        yield f"{reading.samples:,} samples decoded, {len(reading.errors):,} of them damaged."
    yield from (f"  {error}" for error in reading.errors[:_MOST_ERRORS])
    if len(reading.errors) > _MOST_ERRORS:
        yield f"  and {len(reading.errors) - _MOST_ERRORS:,} more."
    for count, first in reading.remarks.values():
        yield f"{count:,} samples: {first}"


def _data_lines(data: TaskData) -> Iterator[str]:
    """Yield the lines about the splits, inputs, tasks and notes of a data set."""
    sizes = ", ".join(
        f"{_size(part)} {title}"
        for title, part in (("training", data.train), ("validation", data.validation), ("test", data.test))
    )
    yield f"It can be read: {sizes} samples of {'x'.join(map(str, data.input_shape))}."
    yield f"Tasks: {', '.join(f'{task.name} ({type(task).__name__.lower()}, {task.outputs})' for task in data.tasks)}."
    yield from data.notes


def _size(part: Any) -> str:
    return "/".join(f"{len(split):,}" for split in (part.values() if isinstance(part, Mapping) else [part]))


def amount(size: int) -> str:
    """Return the text of a number of bytes: "1.2 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
