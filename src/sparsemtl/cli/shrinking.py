"""Command shrink: a trained run becomes one network of a fraction of its multiply-adds."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.training import draw_report, stopping
from sparsemtl.errors import ConfigError

if TYPE_CHECKING:
    from sparsemtl.runs.loaded import LoadedRun


def shrunk_config(run: LoadedRun, macs: float, epochs: int | None) -> dict[str, Any]:
    """Return the configuration of a run that prunes a trained one to a budget while its weights train on.

    The budget is reached after half of the epochs. All else is as in the trained run.

    Args:
        run: the trained run.
        macs: fraction of its multiply-adds to keep, in (0, 1].
        epochs: epochs of training; by default as many as the run was trained for.

    Raises:
        ConfigError: if the run has no configuration, or its tasks have networks of their own.
    """
    from sparsemtl.runs.changes import merge
    from sparsemtl.runs.config import check

    if "encoder" not in run.config:
        raise ConfigError(
            f"{run.folder.path} was made in Python, and has no configuration to train on with. Train the model on with "
            f"sm.Trainer(model, sharing=sm.PruningSharing(macs={macs:g}, ...))."
        )
    if not run.networks.one_network:
        raise ConfigError(
            f"{run.folder.path}: its tasks have networks of their own (masks, or statistics of their own), and one "
            "network for all of them is not what they are. `sparsemtl compact` writes them as they are."
        )
    count = epochs or run.config["training"]["epochs"]
    changes = {
        "name": None,
        "label": None,
        "pretraining": None,
        "pretrained": None,
        "start_from": str(run.folder.path),
        "sharing": {"name": "pruning", "macs": macs, "reach_at": max(1, ceil(count / 2) - 1)},
        "training": {"epochs": count},
    }
    return check(merge(run.config, changes), where=f"the configuration of {run.folder.path}, shrunk")


def shrink(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that has been trained.")],
    macs: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Fraction of the multiply-adds to keep, in (0, 1].")
    ] = 0.3,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Epochs to train on; by default those of the run.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the results; by default RUN-macs-SHARE.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Remove channels, heads and neurons of a trained network while it trains on, and write the small network."""
    from sparsemtl.runs.loaded import load_run
    from sparsemtl.runs.run import run as run_config

    dense = load_run(run)
    config = shrunk_config(dense, macs, epochs)
    folder = out or run.with_name(f"{run.resolve().name}-macs-{macs:g}")
    with stopping(folder):
        run_config(config, folder, progress=not quiet, finished=draw_report)
    _show(dense, load_run(folder))


def _show(dense: LoadedRun, small: LoadedRun) -> None:
    """Write the network of all tasks, and show what it costs and how good it is, before and after."""
    from rich.table import Table

    from sparsemtl.cli.terminal import show_whole
    from sparsemtl.compaction import compact, export

    network = compact(small.model, example_inputs=small.samples())
    before = compact(dense.model, example_inputs=dense.samples()).report
    file = small.folder.path / "small.safetensors"
    export(network, file)
    table = Table("task", "metric", "before", "after", box=None, pad_edge=False)
    for name, metrics in small.metrics.items():
        metric = small.folder.read_summary()["tasks"][name]["primary"]
        table.add_row(name, metric, *(f"{figures[metric]:.4f}" for figures in (dense.metrics[name], metrics)))
    if before.macs is not None and network.report.macs is not None:
        table.add_row("all", "multiply-adds", f"{before.macs[1]:,}", f"{network.report.macs[1]:,}")
    table.add_row("all", "parameters", f"{before.parameters[1]:,}", f"{network.report.parameters[1]:,}")
    show_whole(table)
    typer.echo("Test data. The small network was trained longer: part of a gain may come from that.")
    typer.echo(
        f"Network of all tasks: {file} (`sm.load_network`). Of each task: `sparsemtl compact {small.folder.path}`"
    )
