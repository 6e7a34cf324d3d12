"""The command line: run, resume, study, report, list, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsemtl.errors import SparseMTLError

if TYPE_CHECKING:
    from sparsemtl.registry import Registry

app = typer.Typer(
    help="Sparse multi-task learning: learn what tasks should share inside one network, and what they should not.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes of the file: section.key=value, for instance sharing.keep=0.5.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Where data sets lie; $SPARSEMTL_DATA says the same.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def _use_data_root(root: Path | None) -> None:
    import os

    if root is not None:
        os.environ["SPARSEMTL_DATA"] = str(root)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="A configuration, as in examples/digits.yaml.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name of the file> by default.")] = None,
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Train one run, test it, and draw its report."""
    from sparsemtl.config import override, read_yaml
    from sparsemtl.run import run as run_config

    _use_data_root(data_root)
    folder = out or Path("runs") / file.stem
    config = override(read_yaml(file), overrides or [])
    run_config(config, folder, progress=not quiet)
    _show_run(folder)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The run folder of a run that stopped.")],
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a run from its last checkpoint; it ends as if it had never stopped."""
    from sparsemtl.run import resume as resume_run

    _use_data_root(data_root)
    resume_run(folder, progress=not quiet)
    _show_run(folder)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study, as in examples/digits-study.yaml.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Study folder; runs/<name of the file> by default.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Run a grid of methods, settings and seeds; finished runs are skipped. Ends in tables and a report."""
    from sparsemtl.study.grid import read_study
    from sparsemtl.study.runner import run_study

    _use_data_root(data_root)
    folder = out or Path("runs") / file.stem
    run_study(read_study(file, overrides), folder, jobs=jobs, progress=not quiet)
    typer.echo((folder / "tables.md").read_text(encoding="utf-8").split("\n\n")[0])
    typer.echo(f"\nTables: {folder / 'tables.md'}\nReport: {folder / 'report.html'}")


@app.command()
def report(path: Annotated[Path, typer.Argument(help="A run folder or a study folder.")]) -> None:
    """Draw a run or a study again as one HTML page."""
    from sparsemtl.report import write_report

    typer.echo(f"Report: {write_report(path)}")


@app.command("list")
def list_members(
    what: Annotated[
        str,
        typer.Argument(help="tasks, methods, architectures, balancers, criteria, datasets, encoders, optimizers"),
    ],
) -> None:
    """Show what there is, with parameters, defaults and sources."""
    from rich.console import Console
    from rich.table import Table

    from sparsemtl.errors import ConfigError, unknown_name
    from sparsemtl.parameters import parameters_of

    registries = _registries()
    if what not in registries:
        raise ConfigError(unknown_name("list", what, registries))
    registry = registries[what]
    table = Table("name", "what it is", "parameters", title=f"{registry.kind}s", show_lines=True)
    for name in registry:
        parameters = [
            f"{p.name}: {p.kind}" + ("" if p.required else f" = {p.default}") for p in parameters_of(registry[name])
        ]
        table.add_row(name, registry.summary(name), "\n".join(parameters))
    Console().print(table, markup=False)


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Print the JSON schema of configurations, for editors."""
    from sparsemtl.config import schema_model
    from sparsemtl.files import write_text

    text = json.dumps(schema_model().model_json_schema(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text + "\n")


def _registries() -> dict[str, Registry[Any]]:
    from sparsemtl.architectures import ARCHITECTURES
    from sparsemtl.backbones import ENCODERS
    from sparsemtl.balancing import BALANCERS
    from sparsemtl.criteria import CRITERIA
    from sparsemtl.data import DATASETS
    from sparsemtl.optim import OPTIMIZERS
    from sparsemtl.sharing import SHARING
    from sparsemtl.tasks import TASKS

    return {
        "tasks": TASKS,
        "methods": SHARING,
        "architectures": ARCHITECTURES,
        "balancers": BALANCERS,
        "criteria": CRITERIA,
        "datasets": DATASETS,
        "encoders": ENCODERS,
        "optimizers": OPTIMIZERS,
    }


def _show_run(folder: Path) -> None:
    from sparsemtl.run import primary_results

    for task, value in primary_results(folder).items():
        typer.echo(f"{task:<16} {value:.4f}" if value is not None else f"{task:<16} -")
    typer.echo(f"Report: {folder / 'report.html'}")


def main() -> None:
    """Run the command line; expected errors are one message, without a traceback."""
    try:
        app()
    except SparseMTLError as error:
        typer.secho(f"{type(error).__name__}: {error}", err=True, fg=typer.colors.RED)
        raise SystemExit(1) from None
