"""Commands run, resume, study, report, list and schema; further ones stand in files of their own."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sparsemtl._version import __version__
from sparsemtl.cli.advise import advise
from sparsemtl.cli.bench import bench
from sparsemtl.cli.check import check
from sparsemtl.cli.compare import compare
from sparsemtl.cli.data import app as data_app
from sparsemtl.cli.doctor import doctor
from sparsemtl.cli.options import DataRoot, Out, Plugins, Quiet, use_data_root
from sparsemtl.cli.ship import compact, export
from sparsemtl.cli.shrinking import shrink
from sparsemtl.cli.study import study
from sparsemtl.cli.training import (
    INTERRUPTED,
    Devices,
    Nodes,
    StrategyName,
    draw_report,
    process_changes,
    show_failure,
    stopping,
)
from sparsemtl.errors import ConfigError, SparseMTLError, SparseMTLWarning, unknown_name

if TYPE_CHECKING:
    from sparsemtl.registry.registry import Registry
    from sparsemtl.runs.schema import Keys

app = typer.Typer(
    help="Sparse multi-task learning: learn what tasks should share inside one network, and what they should not.",
    epilog="A first run: `sparsemtl run examples/digits.yaml`. Keys of a configuration: `sparsemtl list`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value",
        help="Changes of the file, such as sharing.keep=0.5 or sharing=random; a section with another name starts from "
        "the defaults of that name. A mapping is merged into the file's key by key: "
        "data.tasks={a: [3, 5]} adds or changes `a`, data.tasks={} changes nothing.",
        show_default=False,
    ),
]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sparsemtl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A configuration, such as examples/digits.yaml.")],
    overrides: _Overrides = None,
    out: Out = None,
    devices: Devices = None,
    strategy: StrategyName = None,
    nodes: Nodes = None,
    data_root: DataRoot = None,
    plugin: Plugins = None,
    quiet: Quiet = False,
) -> None:
    """Train and test one run, and draw its report."""
    from sparsemtl.cli.terminal import show_run
    from sparsemtl.registry.plugins import with_plugins
    from sparsemtl.runs.changes import override
    from sparsemtl.runs.config import check, origins_of
    from sparsemtl.runs.run import run as run_config
    from sparsemtl.storage.yaml_text import read_yaml
    from sparsemtl.training.launch import is_first_process

    use_data_root(data_root)
    content = with_plugins(read_yaml(file), file.parent, plugin or ())
    if "methods" in content:
        raise ConfigError(f"{file} is a study: it has `methods`. Run it with `sparsemtl study {file}`.")
    folder = out or Path("runs") / file.stem
    changes = [*(overrides or []), *process_changes(devices, strategy, nodes)]
    config = check(override(content, changes), where=str(file), origins=origins_of(file, changes))
    with stopping(folder):
        run_config(config, folder, progress=not quiet, finished=draw_report)
    if is_first_process():
        show_run(folder)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run that stopped.")],
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Resume a run from its last checkpoint; it ends as an uninterrupted run."""
    from sparsemtl.cli.terminal import show_run
    from sparsemtl.runs.run import resume as resume_run
    from sparsemtl.training.launch import is_first_process

    use_data_root(data_root)
    with stopping(folder):
        resume_run(folder, progress=not quiet, finished=draw_report)
    if is_first_process():
        show_run(folder)


app.command()(study)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run or of a study.")],
) -> None:
    """Draw the report of a run or a study again: one HTML page."""
    from sparsemtl.report import write_report

    typer.echo(f"Report: {write_report(path)}")


@app.command("list")
def list_members(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="run, training, study, search, tasks, datasets, encoders, heads, architectures, methods, criteria, "
            "balancers, optimizers, schedulers or callbacks; a section (sharing), a key (pretraining) or a member "
            "(pcgrad); by default an overview.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One of them, to list the meaning of its parameters.", show_default=False),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List the keys and members of a configuration, with parameters, defaults and sources."""
    from sparsemtl.registry.plugins import load_plugins

    load_plugins(plugin or ())
    from sparsemtl.cli.terminal import explained_keys, member, members, overview, show
    from sparsemtl.runs.schema import SECTIONS

    plain, registries = _plain_keys(), _registries()
    if what is None:
        show(overview(plain, registries))
        return
    found = {**{section: registry for section, (registry, _) in SECTIONS.items()}, **registries}
    owner = next((of for of, keys in plain.items() if what in keys), None)
    if what in plain:
        show(explained_keys(what, plain[what], name))
    elif what in found:
        show(members(found[what]) if name is None else member(found[what], name))
        if found[what] is SECTIONS["sharing"][0] and name is None:
            show("`sharing: auto` chooses among networks of these for every task: `sparsemtl list run auto`.")
    elif owner is None and name is None and (homes := [r for r in registries.values() if what in r]):
        for registry in homes:
            show(f"{registry.kind} {what}:")
            show(member(registry, what))
    elif owner is None:
        raise ConfigError(unknown_name("list", what, {*plain, *found, *plain["run"]}))
    elif name is not None:
        raise ConfigError(f"{what!r} is a {owner} key, not a list with {name!r}. Use `sparsemtl list {what}`.")
    else:
        show(explained_keys(owner, plain[owner], what))


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.")] = None,
    study: Annotated[bool, typer.Option("--study", help="The schema of study files.")] = False,
    plugin: Plugins = None,
) -> None:
    """Print the JSON schema of configurations or studies, for editors."""
    from sparsemtl.registry.plugins import load_plugins

    load_plugins(plugin or ())
    from sparsemtl.runs.schema import json_schema
    from sparsemtl.storage.text_files import write_text
    from sparsemtl.study.schema import study_json_schema

    text = json.dumps(study_json_schema() if study else json_schema(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text + "\n")


for command in (advise, shrink, check, compare, compact, export, bench, doctor):
    app.command()(command)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; an error is printed as its cause, without the traceback, which is written to a file.

    The exit status is 0 after success, 1 after an error, 2 after a wrong command line, and 128 plus the number of the
    signal after an interruption: 130 (SIGINT), 143 (SIGTERM), 129 (SIGHUP).
    """
    warnings.formatwarning = _format_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shows "?"
    received = _handle_signals()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED and received:
            _leave(128 + received[0])
        raise
    except OSError as error:
        if received:  # the terminal that hung up cannot be written to
            _leave(128 + received[0])
        if isinstance(error, SparseMTLError) or hasattr(error, "error_log"):
            show_failure(error)
        else:
            typer.secho(
                f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True, fg=typer.colors.RED
            )
        raise SystemExit(1) from None
    except Exception as error:
        show_failure(error)
        raise SystemExit(1) from None


def _handle_signals() -> list[int]:
    """Handle the signals that end a job like Ctrl-C; a signal that is ignored, as under nohup, stays ignored.

    Returns:
        List to which the number of every signal is appended when it is received.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    return received


def _leave(status: int) -> NoReturn:
    """Exit with this status, also if the terminal is gone and buffered output cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(status)


_format_any_warning = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning of ours as one message, and any other warning with file and line."""
    if issubclass(category, SparseMTLWarning):
        return f"{category.__name__}: {message}\n"
    return _format_any_warning(message, category, filename, lineno, line)


def _plain_keys() -> dict[str, Keys]:
    """Return the keys without a registry: of a run (no sections), of `training`, of a study and of its `search`."""
    from sparsemtl.runs.schema import run_keys, training_keys
    from sparsemtl.study.grid import KEYS
    from sparsemtl.study.search_options import SEARCH_KEYS

    return {"run": run_keys(), "training": training_keys(), "study": KEYS, "search": SEARCH_KEYS}


def _registries() -> dict[str, Registry[Any]]:
    from sparsemtl.architectures import ARCHITECTURES
    from sparsemtl.backbones import ENCODERS
    from sparsemtl.balancing import BALANCERS
    from sparsemtl.criteria import CRITERIA
    from sparsemtl.data import DATASETS
    from sparsemtl.heads import HEADS
    from sparsemtl.optim import OPTIMIZERS, SCHEDULERS
    from sparsemtl.sharing import SHARING
    from sparsemtl.tasks import TASKS
    from sparsemtl.training.callbacks import CALLBACKS

    return {
        "tasks": TASKS,
        "datasets": DATASETS,
        "encoders": ENCODERS,
        "heads": HEADS,
        "architectures": ARCHITECTURES,
        "methods": SHARING,
        "criteria": CRITERIA,
        "balancers": BALANCERS,
        "optimizers": OPTIMIZERS,
        "schedulers": SCHEDULERS,
        "callbacks": CALLBACKS,
    }
