"""Commands compact and export: the small networks of a run as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsemtl.errors import MissingExtraError, ParameterError, unknown_name

if TYPE_CHECKING:
    from rich.table import Table

    from sparsemtl.compaction import CompactionReport, Exported
    from sparsemtl.runs.loaded import LoadedRun

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that has been trained.")]
MultipleOf = Annotated[
    str,
    typer.Option(
        metavar="N|eager|onnxruntime|sparse",
        help="Let the numbers of channels of images be multiples of N where they can; or the fastest of 1, 4, 8 and 16 "
        "in a runtime, measured on the samples that the run keeps; with `sparse` also linear layers in CSR, which no "
        "file holds.",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", "-t", metavar="TASK", help="A task, may be given repeatedly; by default all.", show_default=False
    ),
]


def compact(
    run: Run,
    task: Tasks = None,
    every: Annotated[bool, typer.Option("--all", help="All tasks, as without --task.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the files; by default RUN/compact.", show_default=False),
    ] = None,
    multiple_of: MultipleOf = "1",
    layers: Annotated[
        bool, typer.Option("--layers", help="Show the channels of every layer, and why they stay.")
    ] = False,
) -> None:
    """Write each task's network, physically small and verified, as TASK.safetensors, and its report beside it."""
    from rich.table import Table

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction import export as export_network
    from sparsemtl.runs.loaded import load_run

    if every and task:
        raise ParameterError("--all names all tasks, --task some. Give one of the two.")
    loaded = load_run(run)
    folder = out or loaded.folder.path / "compact"
    table = Table("task", "parameters", "multiply-adds", "difference", box=None, pad_edge=False)
    pages = 0
    for name in each_task(chosen_tasks(loaded, task)):
        small = loaded.compact(name, multiple_of=multiple(multiple_of))
        export_network(small, folder / f"{name}.safetensors")
        report = small.report
        pages += _write_report(report, folder / name)
        if layers:
            typer.echo(f"{name}\n{report}\n")
        counts = (_change(report.parameters), "" if report.macs is None else _change(report.macs))
        found = report.verification.float64
        table.add_row(name, *counts, "not compared" if found is None else f"{found:.0e}")
    show_whole(table)
    typer.echo(f"Files: {folder}/TASK.safetensors (`sm.load_network`)")
    typer.echo(f"Reports: {folder}/TASK.json" + (f" and {folder}/TASK.html" if pages else ""))


def _write_report(report: CompactionReport, path: Path) -> bool:
    """Write a report as JSON and, if the packages for it are installed, as a page; return whether there is a page."""
    from sparsemtl.report import write_compaction_report
    from sparsemtl.storage.text_files import write_json

    write_json(f"{path}.json", report.to_dict())
    try:
        write_compaction_report(report, f"{path}.html", title=path.name)
    except MissingExtraError as error:
        typer.echo(f"{path.name}: no page was written. {error}", err=True)
        return False
    return True


def export(
    run: Run,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="onnx|pt2|safetensors|bundle", help="Format of the files.")
    ],
    task: Tasks = None,
    together: Annotated[
        bool, typer.Option("--all", help="Write one network with an output per task, as `sm.plan` builds it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the files; by default RUN/export.", show_default=False),
    ] = None,
    axis: Annotated[
        list[int] | None,
        typer.Option(
            metavar="AXIS",
            help="Axis of the inputs that may have any length beside the batch: 1 is the length of sequences. May be "
            "given repeatedly.",
            show_default=False,
        ),
    ] = None,
    multiple_of: MultipleOf = "1",
) -> None:
    """Write each task's small network as ONNX, as an archive of torch.export (pt2) or as safetensors; check outputs.

    `bundle` is one safetensors file of all tasks that stores what they share once: `sm.load_network(file, task=...)`.
    """
    from rich.table import Table

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction.files.exporting import FORMATS
    from sparsemtl.compaction.files.exporting import export as export_network
    from sparsemtl.runs.loaded import load_run

    if format not in (*FORMATS, _BUNDLE):
        raise ParameterError(unknown_name("format", format, (*FORMATS, _BUNDLE)))
    if together and format == _BUNDLE:
        raise ParameterError("a bundle holds one network per task. Leave out --all, or choose another format.")
    loaded = load_run(run)
    tasks, folder = chosen_tasks(loaded, task), out or loaded.folder.path / "export"
    axes = (0, *(axis or ()))
    table = Table("task", "bytes", "samples", "difference", box=None, pad_edge=False)
    if format == _BUNDLE:
        bundle = loaded.save_bundle(folder / "bundle.safetensors", tasks, axes=axes, multiple_of=multiple(multiple_of))
        table = Table("tasks", "bytes", "bytes apart", "difference", box=None, pad_edge=False)
        table.add_row(", ".join(bundle.tasks), f"{bundle.bytes:,}", f"{bundle.separate:,}", f"{bundle.difference:.0e}")
        files = str(bundle.path)
    elif together:
        plan = loaded.plan(tasks, multiple_of=multiple(multiple_of))
        typer.echo(f"{plan}\n")
        _add(table, ", ".join(tasks), plan.export(folder / f"all-tasks.{format}", axes=axes))
        files = f"{folder}/all-tasks.{format}"
    else:
        for name in each_task(tasks):
            small = loaded.compact(name, multiple_of=multiple(multiple_of))
            outputs = [name] if format == "onnx" else None
            _add(table, name, export_network(small, folder / f"{name}.{format}", axes=axes, outputs=outputs))
        files = f"{folder}/TASK.{format}"
    show_whole(table)
    typer.echo(f"Files: {files}")


_BUNDLE = "bundle"


def _add(table: Table, tasks: str, file: Exported) -> None:
    found = "not run" if file.difference is None else f"{file.difference:.0e}"
    table.add_row(tasks, f"{file.bytes:,}", str(file.batch or "any"), found)


def multiple(given: str) -> int | str:
    """Return a number, or the name of a runtime."""
    return int(given) if given.lstrip("-").isdigit() else given


def chosen_tasks(loaded: LoadedRun, tasks: Sequence[str] | None) -> Sequence[str]:
    """Return the named tasks, all by default.

    Raises:
        ParameterError: if the run has no such task.
    """
    for name in tasks or ():
        if name not in loaded.tasks:
            raise ParameterError(unknown_name("task", name, loaded.tasks))
    return tasks or list(loaded.tasks)


def _change(numbers: tuple[int, int]) -> str:
    before, after = numbers
    return f"{before:,} -> {after:,} ({after / before:.0%})" if before else f"{after:,}"


def each_task(tasks: Sequence[str]) -> Iterable[str]:
    """Yield the tasks, with a progress bar in a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(tasks, "networks", console=console, transient=True, disable=not console.is_terminal)
