"""Command study: a grid of runs on this machine or on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.options import DataRoot, Out, Plugins, Quiet, use_data_root
from sparsemtl.cli.training import INTERRUPTED, draw_report, say
from sparsemtl.errors import ParameterError, unknown_name

if TYPE_CHECKING:
    from sparsemtl.storage.study_folder import StudyFolder
    from sparsemtl.study.engines import Engine


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study, such as examples/digits-study.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="Changes of the base of all runs, such as training.epochs=2, or of the study: seeds=[0,1], "
            "baseline=stl, grid.sharing.keep=[0.3,0.5], tune.optimizer.lr=[0.01,0.1], search.trials=50.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", metavar="N", min=1, help="Number of runs at a time; 1 by default.", show_default=False
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Where runs are computed: processes of this machine, or Ray.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Ray cluster: auto, or HOST:PORT; by default this machine.", show_default=False
        ),
    ] = None,
    cpus_per_run: Annotated[
        float | None, typer.Option(metavar="C", help="Cores of Ray per run; 1 by default.", show_default=False)
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(metavar="G", help="GPUs of Ray per run; 0 by default.", show_default=False),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Times that a run whose process was killed is resumed; by default 0, on Ray 3.",
            show_default=False,
        ),
    ] = None,
    run_reports: Annotated[
        bool, typer.Option("--run-reports/--no-run-reports", help="Draw the reports of the runs as well.")
    ] = True,
    data_root: DataRoot = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Run a grid or a search of methods, settings and seeds; write tables and a report. Finished runs are skipped."""
    from sparsemtl.cli.finished import command_digest, keep, recall
    from sparsemtl.cli.study_table import PrintedTable, show_study
    from sparsemtl.storage.study_folder import StudyFolder

    use_data_root(data_root)
    options = _options(engine, jobs, retries, address, cpus_per_run, gpus_per_run)
    folder = StudyFolder(out or Path("runs") / file.stem)
    command = command_digest(file, overrides or [], plugin or [])
    if (known := recall(folder, command, run_reports=run_reports)) is not None:
        count, table = known
        if not quiet:
            say(f"{count} of {count} runs are finished already.")
        show_study(table)
        _show_files(folder)
        return
    if engine == "local" and (jobs or 1) > 1:
        from sparsemtl.study.workers import prepare_workers

        prepare_workers()  # meanwhile this process imports its own modules
    from sparsemtl.study.costs import with_costs
    from sparsemtl.study.evidence import weak_points
    from sparsemtl.study.grid import read_study
    from sparsemtl.study.reading import study_results
    from sparsemtl.study.results import tuned_settings
    from sparsemtl.study.runner import run_study
    from sparsemtl.study.tables import primary_table

    grid = read_study(file, overrides or [], plugin or [])
    try:
        failures = run_study(
            grid,
            folder.path,
            engine=_engine(engine, options),
            progress=not quiet,
            finished=draw_report,
            run_reports=run_reports,
        )
    except KeyboardInterrupt:
        say("Stopped. Resume with the same command.")
        raise typer.Exit(INTERRUPTED) from None
    if folder.has_results:
        whole = study_results(folder)
        results = tuned_settings(whole)
        table = PrintedTable.of(with_costs(primary_table(results), results), weak_points(whole))
        show_study(table)
        _show_files(folder)
        if not failures:
            keep(folder, command, [str(name) for name in whole.frame["run"].unique()], table)
    for name, failure in failures.items():
        typer.secho(f"No result of {name}: {failure}", err=True, fg=typer.colors.RED)
    if failures:
        from sparsemtl.study.calls import LOST

        if any(reason.startswith(LOST) for reason in failures.values()):
            say("The same command resumes runs whose process was killed or lost.")
        raise typer.Exit(1)


def _options(
    engine: str, jobs: int | None, retries: int | None, address: str | None, cpus: float | None, gpus: float | None
) -> dict[str, Any]:
    """Return the options of the engine that were given.

    Raises:
        ParameterError: if there is no such engine, or an option belongs to the other one.
    """
    if engine not in ("local", "ray"):
        raise ParameterError(unknown_name("engine", engine, ("local", "ray")))
    of_ray = {"address": address, "cpus_per_run": cpus, "gpus_per_run": gpus}
    for option, value in ({"jobs": jobs} if engine == "ray" else of_ray).items():
        if value is not None and engine == "ray":
            raise ParameterError(
                "--jobs is an option of the local engine; on Ray, --cpus-per-run bounds runs at a time."
            )
        if value is not None:
            raise ParameterError(f"--{option.replace('_', '-')} is an option of Ray. Add --engine ray, or use --jobs.")
    return {key: value for key, value in {"jobs": jobs, "retries": retries, **of_ray}.items() if value is not None}


def _engine(name: str, options: Mapping[str, Any]) -> Engine:
    if name == "ray":
        from sparsemtl.study.ray_engine import RayEngine

        return RayEngine(**options)
    from sparsemtl.study.engines import LocalEngine

    return LocalEngine(**options)


def _show_files(folder: StudyFolder) -> None:
    """Print the paths of a study's tables and report."""
    typer.echo(f"Tables: {folder.tables}")
    if folder.report.exists():
        typer.echo(f"Report: {folder.report}")
