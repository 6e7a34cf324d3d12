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
    """Print how to resume after Ctrl-C."""
    from sparsemtl.storage.run_folder import RunFolder

    try:
        yield
    except KeyboardInterrupt:
        resumable = RunFolder(folder).begun
        say(f"Stopped. Resume with `sparsemtl resume {folder}`." if resumable else "Stopped.")
        raise typer.Exit(INTERRUPTED) from None


def say(message: str) -> None:
    """Print to standard error, unless the terminal is gone."""
    with suppress(OSError):
        typer.echo(message, err=True)
