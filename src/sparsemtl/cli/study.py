"""Command study: a grid of runs on this machine or on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.cli.options import DataRoot, Out, Plugins, Quiet, use_data_root
from sparsemtl.cli.training import INTERRUPTED, draw_report, say
from sparsemtl.errors import ParameterError, unknown_name

if TYPE_CHECKING:
    from sparsemtl.cli.study_table import PrintedTable
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
    from sparsemtl.storage.study_folder import StudyFolder

    use_data_root(data_root)
    options = _engine_options(engine, jobs, retries, address, cpus_per_run, gpus_per_run)
    folder = StudyFolder(out or Path("runs") / file.stem)
    given = _Given(file, tuple(overrides or ()), tuple(plugin or ()), folder, run_reports, not quiet)
    if not _recalled(given):
        _run(given, engine, options)


@dataclass(frozen=True)
class _Given:
    """Study that the command names, and what is written and printed of it.

    Attributes:
        file: the study file.
        overrides: changes of the file.
        plugins: plugins of the command line.
        folder: folder of the results.
        run_reports: draw the reports of runs.
        progress: print progress.
    """

    file: Path
    overrides: tuple[str, ...]
    plugins: tuple[str, ...]
    folder: StudyFolder
    run_reports: bool
    progress: bool

    @cached_property
    def digest(self) -> str | None:
        """Digest of file, changes and code; None where a digest cannot show all changes."""
        from sparsemtl.cli.finished import command_digest

        return command_digest(self.file, self.overrides, self.plugins)


def _recalled(given: _Given) -> bool:
    """Print the table of a finished study; return False if anything has changed, or is left to do."""
    from sparsemtl.cli.finished import recall

    known = recall(given.folder, given.digest, run_reports=given.run_reports)
    if known is None:
        return False
    count, table = known
    if given.progress:
        say(f"{count} of {count} runs are finished already.")
    _show(table, given.folder)
    return True


def _run(given: _Given, engine: str, options: Mapping[str, Any]) -> None:
    """Run a study, print its table, and exit with 1 if a run has no result."""
    if options.get("jobs", 1) > 1:
        from sparsemtl.study.workers import prepare_workers

        prepare_workers()  # meanwhile this process imports its own modules
    from sparsemtl.study.grid import read_study
    from sparsemtl.study.runner import run_study

    grid = read_study(given.file, given.overrides, given.plugins)
    try:
        failures = run_study(
            grid,
            given.folder.path,
            engine=_engine(engine, options),
            progress=given.progress,
            finished=draw_report,
            run_reports=given.run_reports,
        )
    except KeyboardInterrupt:
        say("Stopped. Resume with the same command.")
        raise typer.Exit(INTERRUPTED) from None
    if given.folder.has_results:
        _show_results(given, whole=not failures)
    _show_failures(failures)


def _show_results(given: _Given, *, whole: bool) -> None:
    """Print the table of a study; keep it for the next time if all runs have ended."""
    from sparsemtl.cli.finished import keep
    from sparsemtl.cli.study_table import PrintedTable
    from sparsemtl.study.costs import with_costs
    from sparsemtl.study.evidence import weak_points
    from sparsemtl.study.reading import study_results
    from sparsemtl.study.results import tuned_settings
    from sparsemtl.study.tables import primary_table

    results = study_results(given.folder)
    tuned = tuned_settings(results)
    table = PrintedTable.of(with_costs(primary_table(tuned), tuned), weak_points(results))
    _show(table, given.folder)
    if whole:
        keep(given.folder, given.digest, [str(name) for name in results.frame["run"].unique()], table)


def _show(table: PrintedTable, folder: StudyFolder) -> None:
    """Print the table of a study, and the paths of its tables and report."""
    from sparsemtl.cli.study_table import show_study

    show_study(table)
    typer.echo(f"Tables: {folder.tables}")
    if folder.report.exists():
        typer.echo(f"Report: {folder.report}")


def _show_failures(failures: Mapping[str, str]) -> None:
    """Print the reasons of runs without a result, and exit with 1 if there are any."""
    from sparsemtl.study.calls import LOST

    for name, failure in failures.items():
        typer.secho(f"No result of {name}: {failure}", err=True, fg=typer.colors.RED)
    if any(reason.startswith(LOST) for reason in failures.values()):
        say("The same command resumes runs whose process was killed or lost.")
    if failures:
        raise typer.Exit(1)


def _engine_options(
    engine: str, jobs: int | None, retries: int | None, address: str | None, cpus: float | None, gpus: float | None
) -> dict[str, Any]:
    """Return the options of the engine that were given.

    Raises:
        ParameterError: if there is no such engine, or an option belongs to the other one.
    """
    if engine not in ("local", "ray"):
        raise ParameterError(unknown_name("engine", engine, ("local", "ray")))
    of_ray = {"address": address, "cpus_per_run": cpus, "gpus_per_run": gpus}
    if engine == "ray" and jobs is not None:
        raise ParameterError("--jobs is an option of the local engine; on Ray, --cpus-per-run bounds runs at a time.")
    for option, value in of_ray.items():
        if engine == "local" and value is not None:
            raise ParameterError(f"--{option.replace('_', '-')} is an option of Ray. Add --engine ray, or use --jobs.")
    return {key: value for key, value in {"jobs": jobs, "retries": retries, **of_ray}.items() if value is not None}


def _engine(name: str, options: Mapping[str, Any]) -> Engine:
    """Return an engine, whose libraries are imported here."""
    if name == "ray":
        from sparsemtl.study.ray_engine import RayEngine

        return RayEngine(**options)
    from sparsemtl.study.engines import LocalEngine

    return LocalEngine(**options)
