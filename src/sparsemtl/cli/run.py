"""Commands run, resume and report: one run, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsemtl.cli.options import ConfigFile, DataRoot, Out, Overrides, Plugins, Quiet, use_data_root
from sparsemtl.cli.training import draw_report, stopping

_Devices = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes on this machine that train together, a GPU or a core each; a step is that of N times the "
        "batch size. Short for training.devices=N.",
        show_default=False,
    ),
]
_Strategy = Annotated[str | None, typer.Option(metavar="ddp", help="Short for training.strategy.", show_default=False)]
_Nodes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Machines, on each of which this command is started. Short for training.num_nodes=N.",
        show_default=False,
    ),
]


def run(
    file: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    devices: _Devices = None,
    strategy: _Strategy = None,
    nodes: _Nodes = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train and test one run, and draw its report."""
    from sparsemtl.runs.config_file import read_config
    from sparsemtl.runs.run import run as run_config

    use_data_root(data_root)
    config = read_config(file, [*(overrides or []), *process_changes(devices, strategy, nodes)], plugin or [])
    folder = out or Path("runs") / file.stem
    with stopping(folder):
        run_config(config, folder, progress=not quiet, finished=draw_report)
    _show(folder)


def process_changes(devices: int | None, strategy: str | None, nodes: int | None) -> list[str]:
    """Return the changes of a configuration that the options of several processes stand for."""
    given = {"devices": devices, "strategy": strategy, "num_nodes": nodes}
    return [f"training.{key}={value}" for key, value in given.items() if value is not None]


def resume(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run that stopped.")],
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Resume a run from its last checkpoint; it ends as an uninterrupted run."""
    from sparsemtl.runs.run import resume as resume_run

    use_data_root(data_root)
    with stopping(folder):
        resume_run(folder, progress=not quiet, finished=draw_report)
    _show(folder)


def _show(folder: Path) -> None:
    """Print the results of a run; of several processes the first one prints."""
    from sparsemtl.cli.terminal import show_run
    from sparsemtl.training.processes.launch import is_first_process

    if is_first_process():
        show_run(folder)


def report(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run or of a study.")],
) -> None:
    """Draw the report of a run or a study again: one HTML page."""
    from sparsemtl.report import write_report

    typer.echo(f"Report: {write_report(path)}")
