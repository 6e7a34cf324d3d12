"""The command `sparsemtl`: its subcommands, which stand in files of their own, signals, and errors."""

from __future__ import annotations

import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from sparsemtl._version import __version__
from sparsemtl.cli.advise import advise
from sparsemtl.cli.bench import bench
from sparsemtl.cli.check import check
from sparsemtl.cli.compare import compare
from sparsemtl.cli.data import app as data_app
from sparsemtl.cli.doctor import doctor
from sparsemtl.cli.listing import list_members, schema
from sparsemtl.cli.run import report, resume, run
from sparsemtl.cli.ship import compact, export
from sparsemtl.cli.shrinking import shrink
from sparsemtl.cli.study import study
from sparsemtl.cli.training import INTERRUPTED, show_failure
from sparsemtl.errors import SparseMTLError, SparseMTLWarning
from sparsemtl.storage.stops import traceback_file

app = typer.Typer(
    help="Sparse multi-task learning: learn what tasks should share inside one network, and what they should not.",
    epilog="A first run: `sparsemtl run examples/digits.yaml`. Keys of a configuration: `sparsemtl list`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (run, resume, study),
    "Prepare": (check, advise, list_members, schema, doctor),
    "Look at results": (report, compare),
    "Small networks": (shrink, compact, export, bench),
}
"""Heading in the help -> its commands."""


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


def _help_of(command: Callable[..., None]) -> str:
    """Return a command's docstring with a line per paragraph, which a terminal of any width wraps."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


for panel, commands in _PANELS.items():
    for command in commands:
        name = "list" if command is list_members else command.__name__
        app.command(name, help=_help_of(command), rich_help_panel=panel)(command)
app.add_typer(data_app, name="data", rich_help_panel="Prepare")


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
        if isinstance(error, SparseMTLError) or traceback_file(error):
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
    """Handle Ctrl-C and the signals that end a job like it; a signal that is ignored, as under nohup, stays ignored.

    Returns:
        List to which the number of every signal is appended when it is received.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        # a second one, as from the process that started this one, would disturb the end; a second Ctrl-C is to end it
        if len(received) == 1 or number == signal.SIGINT:
            raise KeyboardInterrupt(signal.Signals(number).name)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
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
