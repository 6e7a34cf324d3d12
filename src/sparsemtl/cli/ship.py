"""Commands compact, export and bench: the small networks of a run, as files and in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.errors import MissingExtraError, ParameterError, unknown_name

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from sparsemtl.compaction import CompactionReport, Exported
    from sparsemtl.compaction.inputs import Inputs
    from sparsemtl.runs.loaded import LoadedRun

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that has been trained.")]
MultipleOf = Annotated[
    str,
    typer.Option(
        metavar="N|eager|onnxruntime",
        help="Let the numbers of channels of images be multiples of N where they can; or the fastest of 1, 4, 8 and 16 "
        "in a runtime, measured on the samples that the run keeps.",
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

    loaded = load_run(run)
    folder = out or loaded.folder.path / "compact"
    table = Table("task", "parameters", "multiply-adds", "difference", box=None, pad_edge=False)
    pages = 0
    for name in _each(_chosen(loaded, task)):
        small = loaded.compact(name, multiple_of=_multiple(multiple_of))
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
    multiple_of: MultipleOf = "1",
) -> None:
    """Write each task's small network as ONNX, as an archive of torch.export (pt2) or as safetensors; check outputs.

    `bundle` is one safetensors file of all tasks that stores what they share once: `sm.load_network(file, task=...)`.
    """
    from rich.table import Table

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction.exporting import FORMATS
    from sparsemtl.compaction.exporting import export as export_network
    from sparsemtl.runs.loaded import load_run

    if format not in (*FORMATS, _BUNDLE):
        raise ParameterError(unknown_name("format", format, (*FORMATS, _BUNDLE)))
    if together and format == _BUNDLE:
        raise ParameterError("a bundle holds one network per task. Leave out --all, or choose another format.")
    loaded = load_run(run)
    tasks, folder = _chosen(loaded, task), out or loaded.folder.path / "export"
    table = Table("task", "bytes", "samples", "difference", box=None, pad_edge=False)
    if format == _BUNDLE:
        bundle = loaded.save_bundle(folder / "bundle.safetensors", tasks, multiple_of=_multiple(multiple_of))
        table = Table("tasks", "bytes", "bytes apart", "difference", box=None, pad_edge=False)
        table.add_row(", ".join(bundle.tasks), f"{bundle.bytes:,}", f"{bundle.separate:,}", f"{bundle.difference:.0e}")
        files = str(bundle.path)
    elif together:
        plan = loaded.plan(tasks, multiple_of=_multiple(multiple_of))
        typer.echo(f"{plan}\n")
        _add(table, ", ".join(tasks), plan.export(folder / f"all-tasks.{format}"))
        files = f"{folder}/all-tasks.{format}"
    else:
        for name in _each(tasks):
            small = loaded.compact(name, multiple_of=_multiple(multiple_of))
            outputs = [name] if format == "onnx" else None
            _add(table, name, export_network(small, folder / f"{name}.{format}", outputs=outputs))
        files = f"{folder}/TASK.{format}"
    show_whole(table)
    typer.echo(f"Files: {files}")


_BUNDLE = "bundle"


def _add(table: Table, tasks: str, file: Exported) -> None:
    found = "not run" if file.difference is None else f"{file.difference:.0e}"
    table.add_row(tasks, f"{file.bytes:,}", str(file.batch or "any"), found)


def bench(
    run: Run,
    task: Tasks = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, help="Samples of a batch, may be given repeatedly; by default 1 and 16."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of threads; by default torch's.", show_default=False)
    ] = None,
    multiple_of: MultipleOf = "1",
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Number of passes that are timed.")] = 30,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNTIME",
            help="eager, compile, onnxruntime, half, int8 or sparse; may be given repeatedly. By default eager and, "
            "where it is installed, onnxruntime; `compile` takes up to minutes per network.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Device of the networks.")] = "cpu",
) -> None:
    """Time each task's network before and after compaction, in turns, in torch and in onnxruntime.

    Below it, the ways to compute all of the tasks: one network per task, or together where they compute the same.
    """
    import torch
    from rich.table import Table

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction import speedups
    from sparsemtl.compaction.runtimes import RUNTIMES
    from sparsemtl.runs.loaded import load_run

    for name in runtime or ():
        if name not in RUNTIMES:
            raise ParameterError(unknown_name("runtime", name, RUNTIMES))
    if device != "cpu" and not torch.cuda.is_available():
        raise ParameterError(f"--device {device}: torch finds no GPU here. Use --device cpu.")

    loaded = load_run(run)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    heads = (
        "task",
        "runtime",
        "samples",
        "before, ms (p95)",
        "after, ms (p95)",
        "faster",
        "multiply-adds",
        "became time",
        "difference",
    )
    table = Table(*heads, box=None, pad_edge=False)
    tasks, sizes = _chosen(loaded, task), batch_size or (1, 16)
    reasons, processor = [], ""
    try:
        for name in _each(tasks):
            small = loaded.compact(name, multiple_of=_multiple(multiple_of)).to(device)
            dense = loaded.network(name).to(device)
            options: dict[str, Any] = {"task": name, "repeats": repeats, "runtimes": runtime}
            batches = _batches(loaded, name, small.report.example, sizes)
            for found in (each for x in batches for each in speedups(dense, small, x.to(device), **options)):
                yielded = "" if found.yielded is None else f"{found.yielded:.0%}"
                left = found.macs[1] / found.macs[0] if found.macs[0] else 1.0
                times = [f"{time.median:.3f} ({time.p95:.3f})" for time in (found.before, found.after)]
                changes = (f"{found.ratio:.2f}x", f"{left:.0%}", yielded, f"{found.difference:.0e}")
                table.add_row(name, found.runtime, str(found.batch), *times, *changes)
                processor = found.processor
                if found.reason:
                    reasons.append(f"{name}, {found.runtime}, {found.batch} samples: {found.reason}.")
        together = _options(loaded, tasks, sizes, multiple_of, repeats) if len(tasks) > 1 else None
    finally:
        torch.set_num_threads(before)
    show_whole(table)
    typer.echo(
        f"{processor}, {threads or before} threads, medians of {repeats} passes. `became time`: share of the saved "
        "multiply-adds that became saved time. `difference`: of the small network's outputs from those in torch, as a "
        "fraction of their spread."
    )
    if reasons:
        typer.echo("Where less than half became time:\n" + "\n".join(reasons))
    if together is not None:
        typer.echo("\nAll tasks together:")
        show_whole(together)


def _options(loaded: LoadedRun, tasks: Sequence[str], sizes: Sequence[int], multiple_of: str, repeats: int) -> Table:
    """Return the times of the ways to compute all tasks."""
    from rich.table import Table

    from sparsemtl.compaction.timing import timings

    plan = loaded.plan(tasks, multiple_of=_multiple(multiple_of))
    heads = ("option", "runtime", "samples", "ms (p95)", "multiply-adds", "bytes", "")
    table = Table(*heads, box=None, pad_edge=False)
    for x in _batches(loaded, tasks[0], plan.example, sizes):
        for runtime, times in timings({each.name: each.network for each in plan.options}, x, repeats=repeats):
            fastest = min(times, key=lambda name: times[name].median)
            for each in plan.options:
                time = times[each.name]
                best = "fastest" if each.name == fastest and len(times) > 1 else ""
                costs = (f"{time.median:.3f} ({time.p95:.3f})", f"{each.macs:,}", f"{each.bytes:,}", best)
                table.add_row(each.name, runtime, str(len(x)), *costs)
    return table


def _batches(loaded: LoadedRun, name: str, example: Inputs | None, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield random batches like an example."""
    import torch

    from sparsemtl.compaction.inputs import Like

    if example is None or len(example.args) != 1 or not isinstance(example.args[0], Like):
        raise ParameterError(
            f"{loaded.folder.path}: inputs of {name!r} are no tensor that the run keeps samples of. Time them in "
            "Python: `sm.speedups(run.network(task), run.compact(task, batch), batch, task=task)`."
        )
    generator, like = torch.Generator().manual_seed(0), example.args[0]
    for size in sizes:
        yield like.drawn(generator, (size, *like.shape[1:]))


def _multiple(given: str) -> int | str:
    """Return a number, or the name of a runtime."""
    return int(given) if given.lstrip("-").isdigit() else given


def _chosen(loaded: LoadedRun, tasks: Sequence[str] | None) -> Sequence[str]:
    for name in tasks or ():
        if name not in loaded.tasks:
            raise ParameterError(unknown_name("task", name, loaded.tasks))
    return tasks or list(loaded.tasks)


def _change(numbers: tuple[int, int]) -> str:
    before, after = numbers
    return f"{before:,} -> {after:,} ({after / before:.0%})" if before else f"{after:,}"


def _each(tasks: Sequence[str]) -> Iterable[str]:
    """Yield the tasks, with a progress bar in a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(tasks, "networks", console=console, transient=True, disable=not console.is_terminal)
