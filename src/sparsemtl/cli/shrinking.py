"""Command shrink: a trained run becomes small networks, by budget, each a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.training import draw_report, stopping
from sparsemtl.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from sparsemtl.runs.loaded import LoadedRun
    from sparsemtl.training.shrinking.budget import Budget
    from sparsemtl.training.shrinking.result import ShrinkResult


def shrunk_config(
    run: LoadedRun, start: Path, options: Mapping[str, Any], epochs: int, *, teacher_weight: float = 0.0
) -> dict[str, Any]:
    """Return the configuration of a run that prunes a trained network to a budget while its weights train on.

    The outputs of the trained run are soft targets. All else is as in the trained run. If several processes trained
    that, one takes the same steps, with as many times the batch size: it measures and writes the networks between runs.

    Args:
        run: the trained run.
        start: folder of the run whose weights it starts from: that run, or one that was pruned less.
        options: parameters of `sharing: pruning`.
        epochs: epochs of training.
        teacher_weight: factor of the distance from the trained run's outputs; 0 for none.

    Raises:
        ConfigError: if the run has no configuration, or its tasks have networks of their own.
    """
    from sparsemtl.runs.changes import merge
    from sparsemtl.runs.config import check

    if "encoder" not in run.config:
        raise ConfigError(
            f"{run.folder.path} was made in Python, and has no configuration to train on with. Shrink the model in "
            "Python: sm.shrink(model, train, validation, budget=...)."
        )
    if not run.networks.one_network:
        raise ConfigError(
            f"{run.folder.path}: its tasks have networks of their own (masks, or statistics of their own), and one "
            "network for all of them is not what they are. `sparsemtl compact` writes them as they are."
        )
    training = check(run.config, where=str(run.folder.config))["training"]
    size = training["batch_size"] * training["devices"] * training["num_nodes"]
    changes = {
        "name": None,
        "label": None,
        "pretraining": None,
        "pretrained": None,
        "start_from": str(start),
        "teacher": {"run": str(run.folder.path), "weight": teacher_weight} if teacher_weight else None,
        "sharing": {"name": "pruning", **options},
        "training": {"epochs": epochs, "batch_size": size, "devices": 1, "num_nodes": 1},
    }
    return check(merge(run.config, changes), where=f"the configuration of {run.folder.path}, shrunk")


def shrink(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that has been trained.")],
    more: Annotated[
        list[float] | None,
        typer.Argument(metavar="[NUMBER]...", help="Further budgets of the same kind, as in `--macs 0.5 0.3 0.15`."),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Fraction of the multiply-adds to keep, in (0, 1); by default 0.3."),
    ] = None,
    weights: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Fraction of the weights to keep, in (0, 1).")
    ] = None,
    milliseconds: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Milliseconds on this machine, for the samples that the run keeps."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Largest loss of any task on validation data, as a fraction of its metric; the smallest network "
            "that keeps to it is searched.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Epochs per budget, of --max-drop in all; by default those of the run.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the results; by default RUN-macs-SHARE, or RUN-small with a run per budget.",
            show_default=False,
        ),
    ] = None,
    per_reader: Annotated[
        bool,
        typer.Option(
            "--per-reader/--all-readers", help="Remove a channel from one layer that reads it at a time, or from all."
        ),
    ] = True,
    strength: Annotated[
        float, typer.Option("--lambda", metavar="L", min=0.0, help="Strength of the group lasso while training.")
    ] = 5e-5,
    teacher_weight: Annotated[
        float, typer.Option(metavar="W", min=0.0, help="Weight of the trained run's outputs as soft targets; 0: none.")
    ] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Remove channels, heads and neurons of a trained network while it trains on, and write the small network."""
    from sparsemtl.runs.loaded import load_run
    from sparsemtl.training.processes.workers import refuse_distributed
    from sparsemtl.training.shrinking.budget import budget_of

    given = {"macs": macs, "weights": weights, "milliseconds": milliseconds, "max_drop": max_drop}
    chosen = {kind: [value, *(more or [])] for kind, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise ConfigError(f"give one kind of budget, got {' and '.join(f'--{kind}' for kind in chosen)}.")
    kind, values = next(iter(chosen.items()), ("macs", [0.3, *(more or [])]))
    if kind == "max_drop" and len(values) > 1:
        raise ConfigError(f"--max-drop: expected one number, got {values}.")
    refuse_distributed()
    dense = load_run(run)
    budget = budget_of({kind: values[0] if kind == "max_drop" else values}, dense.tasks)
    alone = len(budget.values) == 1
    ending = budget.name(budget.values[0]).replace(" ", "-") if alone else "small"
    folder = out or run.with_name(f"{run.resolve().name}-{ending}")
    with stopping(folder):
        pruning = {"per_reader": per_reader, "lambda": strength}
        make = partial(shrunk_config, dense, teacher_weight=teacher_weight)
        result = _run_stages(dense, folder, budget, epochs, pruning, make=make, quiet=quiet)
    _write(result, dense, folder)


def _run_stages(
    dense: LoadedRun,
    folder: Path,
    budget: Budget,
    epochs: int | None,
    pruning: Mapping[str, Any],
    *,
    make: Callable[..., dict[str, Any]],
    quiet: bool,
) -> ShrinkResult:
    """Train a run per stage, those that are finished left out, and measure its networks."""
    from sparsemtl.runs.loaded import load_run
    from sparsemtl.runs.run import run as run_config
    from sparsemtl.runs.spec import RunSpec
    from sparsemtl.storage.run_folder import RunFolder
    from sparsemtl.training.evaluation.trained import Trained
    from sparsemtl.training.shrinking.shrink import ShrinkData, shrink_in_stages

    count = epochs or dense.config.get("training", {}).get("epochs", 2)
    spec = RunSpec(make(dense.folder.path, {}, count))
    before, alone = dense.folder.path, len(budget.values) == 1

    def stage(trained: Trained, name: str, options: Mapping[str, Any], count: int) -> Trained:
        nonlocal before
        own = RunFolder(folder if alone else folder / name.replace(" ", "-"))
        config = make(before, options, count)
        if not own.finished or own.read_config() != config:
            run_config(config, own.path, resume=own.begun, progress=not quiet, finished=draw_report, built=spec.built)
        before = own.path
        small = load_run(own.path)
        return Trained(small.model, small.networks, small.model)

    train, validation, test = spec.loaders()
    data = ShrinkData(train, validation, test, dense.samples())
    first = Trained(dense.model, dense.networks, dense.model)
    return shrink_in_stages(stage, first, data, budget=budget, epochs=count, pruning=pruning)


def _write(result: ShrinkResult, dense: LoadedRun, folder: Path) -> None:
    """Write the smallest network, the figures and the page, and show the table."""
    from sparsemtl.compaction import export
    from sparsemtl.report import write_shrink_report
    from sparsemtl.storage.text_files import write_json

    typer.echo(str(result))
    typer.echo("The small networks were trained longer than the dense one: part of a gain may come from that.")
    write_json(folder / "shrink.json", result.record())
    file = folder / "small.safetensors"
    if result.smallest is not result.dense and result.smallest.form == "one network":
        export(result.network, file, example_inputs=dense.samples())
        typer.echo(f"Network of all tasks ({result.smallest.name}): {file} (`sm.load_network`).")
    try:
        page = write_shrink_report(result, folder / "shrink.html", title=f"{dense.folder.path.resolve().name}, shrunk")
        typer.echo(f"Quality against cost: {page}")
    except MissingExtraError as error:
        typer.echo(f"no page was drawn: {error}")
