"""Parts of all commands that train: the report at the end, and an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells: 128 plus the number of SIGINT."""


def draw_report(folder: Path) -> None:
    """Write the report of a run or a study, or print which library is missing: the results are there without it."""
    from sparsemtl.errors import MissingExtraError
    from sparsemtl.report import write_report

    try:
        write_report(folder)
    except MissingExtraError as error:
        typer.echo(f"no report was drawn: {error}")


@contextmanager
def stopping(folder: Path) -> Iterator[None]:
    """Print how to resume after Ctrl-C or an error."""
    from sparsemtl.storage.run_folder import RunFolder
    from sparsemtl.storage.stops import traceback_file

    try:
        yield
    except KeyboardInterrupt:
        from sparsemtl.training.processes.launch import is_first_process

        if not is_first_process():
            raise typer.Exit(INTERRUPTED) from None
        resumable = RunFolder(folder).begun
        say(f"Stopped. Resume with `sparsemtl resume {folder}`." if resumable else "Stopped.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if traceback_file(error):
            run = RunFolder(folder)
            if run.finished:
                say(f"The run is trained and tested; `sparsemtl report {folder}` draws its report again.")
            elif run.begun:
                say(f"The run stopped. Once the cause is removed, resume it with `sparsemtl resume {folder}`.")
        raise


def show_failure(error: Exception) -> None:
    """Print the cause of an error in a user's terms, and the path of its traceback.

    An error that is not one of ours and has no traceback in a run folder gets one in the folder of temporary files.
    """
    from sparsemtl.errors import SparseMTLError
    from sparsemtl.storage.stops import Cause, traceback_file

    log = traceback_file(error)
    if log is None and not isinstance(error, SparseMTLError):
        log = _write_traceback(error)
    if log is not None:
        say(f"The traceback is in {log}.")
    with suppress(OSError):
        typer.secho(str(Cause.of(error)), err=True, fg=typer.colors.RED)


def _write_traceback(error: Exception) -> Path | None:
    """Write the traceback of an error into a new temporary file; None if it cannot be written."""
    import tempfile
    import traceback

    with suppress(OSError):
        with tempfile.NamedTemporaryFile(
            "w", prefix="sparsemtl-error-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write("".join(traceback.format_exception(error)))
        return Path(file.name)
    return None


def say(message: str) -> None:
    """Print to standard error, unless the terminal is gone."""
    with suppress(OSError):
        typer.echo(message, err=True)
