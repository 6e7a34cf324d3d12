"""Command bench: milliseconds of the networks of a run before and after compaction, or of those in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.ship import MultipleOf, Tasks, chosen_tasks, each_task, multiple
from sparsemtl.errors import ParameterError, unknown_name

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from sparsemtl.compaction import Speedup
    from sparsemtl.compaction.inputs import Inputs
    from sparsemtl.runs.loaded import LoadedRun


def bench(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="Folder of a run that has been trained, or a network in a file: .safetensors (of a bundle all tasks), "
            ".pt2, .onnx.",
        ),
    ],
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

    Below it, the ways to compute all of the tasks: one network per task, or together where they compute the same. Of a
    file, its networks are timed as they are, on random inputs.
    """
    settings = _Settings(tuple(batch_size or (1, 16)), repeats, runtime, device)
    settings.check()
    if run.is_file() and multiple_of != "1":
        raise ParameterError(f"--multiple-of {multiple_of}: the network in {run} is compacted already. Leave it out.")
    from sparsemtl.training.processes.machine import use_threads

    with use_threads(threads):
        if run.is_file():
            _bench_file(run, tuple(task or ()), settings)
        else:
            _bench_run(run, task, multiple_of, settings)


@dataclass(frozen=True)
class _Settings:
    """Options of the measurement.

    Attributes:
        sizes: numbers of samples.
        repeats: number of passes that are timed.
        runtimes: names of runtimes, None for those of every installation.
        device: device of the networks.
    """

    sizes: tuple[int, ...]
    repeats: int
    runtimes: Sequence[str] | None
    device: str

    def check(self) -> None:
        """Raise a ParameterError for a runtime or a device that is not there."""
        import torch

        from sparsemtl.compaction.timing.runtimes import RUNTIMES

        for name in self.runtimes or ():
            if name not in RUNTIMES:
                raise ParameterError(unknown_name("runtime", name, RUNTIMES))
        if self.device != "cpu" and not torch.cuda.is_available():
            raise ParameterError(f"--device {self.device}: torch finds no GPU here. Use --device cpu.")


def _table(*heads: str) -> Table:
    from rich.table import Table

    return Table(*heads, box=None, pad_edge=False)


def _bench_run(run: Path, task: list[str] | None, multiple_of: str, settings: _Settings) -> None:
    import torch

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction import speedups
    from sparsemtl.runs.loaded import load_run

    loaded = load_run(run)
    tasks = chosen_tasks(loaded, task)
    options: dict[str, Any] = {"repeats": settings.repeats, "runtimes": settings.runtimes}
    found: list[tuple[str, Speedup]] = []
    for name in each_task(tasks):
        small = loaded.compact(name, multiple_of=multiple(multiple_of)).to(settings.device)
        dense = loaded.network(name).to(settings.device)
        for x in _batches(loaded, name, small.report.example, settings.sizes):
            found += [(name, each) for each in speedups(dense, small, x.to(settings.device), task=name, **options)]
    together = _ways(loaded, tasks, multiple_of, settings) if len(tasks) > 1 else None
    show_whole(_comparison(found))
    processor = found[-1][1].processor if found else ""
    typer.echo(
        f"{processor}, {torch.get_num_threads()} threads, medians of {settings.repeats} passes. `became time`: share "
        "of the saved multiply-adds that became saved time, where at least 5 % were saved. `difference`: of the small "
        "network's outputs from those in torch, as a fraction of their spread."
    )
    reasons = [f"{name}, {each.runtime}, {each.batch} samples: {each.reason}." for name, each in found if each.reason]
    if reasons:
        typer.echo("Where less than half became time:\n" + "\n".join(reasons))
    if together is not None:
        typer.echo("\nAll tasks together:")
        show_whole(together)


_NOISE = 0.95
"""Fraction of the multiply-adds that is left beyond which the share that became time would be a ratio of noise."""


def _comparison(found: Sequence[tuple[str, Speedup]]) -> Table:
    """Return the times before and after, a row per task, runtime and batch."""
    times = ("before, ms (p95)", "after, ms (p95)", "faster", "multiply-adds left", "became time", "difference")
    table = _table("task", "runtime", "samples", *times)
    for name, each in found:
        left = each.macs[1] / each.macs[0] if each.macs[0] else 1.0
        yielded = "" if each.yielded is None or left > _NOISE else f"{each.yielded:.0%}"
        changes = (f"{each.ratio:.2f}x", f"{left:.0%}", yielded, f"{each.difference:.0e}")
        table.add_row(name, each.runtime, str(each.batch), *map(_milliseconds, (each.before, each.after)), *changes)
    return table


def _milliseconds(time: Any) -> str:
    return f"{time.median:.3f} ({time.p95:.3f})"


def _ways(loaded: LoadedRun, tasks: Sequence[str], multiple_of: str, settings: _Settings) -> Table:
    """Return the times of the ways to compute all tasks."""
    from sparsemtl.compaction.inputs import Inputs
    from sparsemtl.compaction.timing.measure import timings

    plan = loaded.plan(tasks, multiple_of=multiple(multiple_of))
    table = _table("option", "runtime", "samples", "ms (p95)", "multiply-adds", "bytes", "")
    networks = {each.name: each.network for each in plan.options}
    for x in _batches(loaded, tasks[0], plan.example, settings.sizes):
        for runtime, times in timings(networks, Inputs((x,)), repeats=settings.repeats):
            fastest = min(times, key=lambda name: times[name].median)
            for each in plan.options:
                best = "fastest" if each.name == fastest and len(times) > 1 else ""
                costs = (_milliseconds(times[each.name]), f"{each.macs:,}", f"{each.bytes:,}", best)
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


def _bench_file(path: Path, tasks: tuple[str, ...], settings: _Settings) -> None:
    import torch

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction.files.modules import read_files
    from sparsemtl.compaction.timing.measure import timings
    from sparsemtl.kernels.processor import processor_name

    files = read_files(path, tasks)
    runtimes = _runtimes_of(path, settings.runtimes)
    table = _table("network", "runtime", "samples", "ms (p95)")
    for size in settings.sizes:
        for name in files:
            inputs = files[name].inputs(size).to(dtype=None, device=torch.device(settings.device))
            networks = {name: files[name].network.to(settings.device)}
            for runtime, times in timings(networks, inputs, repeats=settings.repeats, runtimes=runtimes):
                table.add_row(name, runtime, str(inputs.samples() or ""), _milliseconds(times[name]))
    show_whole(table)
    typer.echo(
        f"{processor_name()}, {torch.get_num_threads()} threads, medians of {settings.repeats} passes on random "
        f"inputs. {path} takes " + "; ".join(_described(each) for each in next(iter(files.values())).describe()) + "."
    )


def _runtimes_of(path: Path, asked: Sequence[str] | None) -> Sequence[str] | None:
    """Return the runtimes to time a file in."""
    own = ("onnxruntime", "int8")
    if path.suffix != ".onnx":
        return asked
    if any(name not in own for name in asked or ()):
        raise ParameterError(f"{path}: an ONNX file runs in {' and '.join(own)} alone, got {', '.join(asked or ())}.")
    return asked or own[:1]


def _described(given: Any) -> str:
    """Return an input in words, "(any, 3, 32, 32) of float32"."""
    sizes = ", ".join("any" if size is None else str(size) for size in given.shape)
    return f"({sizes}) of {str(given.dtype).removeprefix('torch.')}"
