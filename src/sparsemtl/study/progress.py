"""Progress of a study on the error stream: lines, and in a terminal a bar and a table of the runs that are running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemtl.storage.locks import MARK
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.views.bars import is_live

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.progress import Progress, TaskID

_ROWS = 20
"""Runs in the table at most."""
_TAIL = 4096
"""Bytes of the end of `metrics.csv` that are read."""


@dataclass
class _StudyProgress:
    """Progress of the runs of a study; made by `study_progress`.

    Attributes:
        console: where lines are printed.
        bar: the bar.
        task: its task.
        waiting: folders of the runs that have not ended.
        before: path of a run folder -> time of its mark before the study; it changes when the run starts.
        failed: number of runs without a result.
    """

    console: Console
    bar: Progress
    task: TaskID
    waiting: list[RunFolder]
    before: Mapping[Path, float]
    failed: int = 0

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line)

    def advance(self, folder: RunFolder, *, failed: bool) -> None:
        """Count a run that has ended."""
        self.waiting = [other for other in self.waiting if other.path != folder.path]
        self.failed += failed
        self.bar.update(self.task, advance=1, failed=f"{self.failed} failed" if self.failed else "")

    def drawn(self) -> Group:
        """Return the bar above the table of the runs that are running."""
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        running = [folder for folder in self.waiting if _marked(folder) != self.before[folder.path]]
        for folder in running[:_ROWS]:
            table.add_row(folder.path.name, f"epoch {epoch}" if (epoch := _epoch(folder)) else "starts", style="dim")
        if len(running) > _ROWS:
            table.add_row(f"and {len(running) - _ROWS} more", "", style="dim")
        return Group(self.bar, table)


@contextmanager
def study_progress(what: str, folders: Sequence[RunFolder], *, show: bool = True) -> Iterator[_StudyProgress]:
    """Show the progress of runs inside the context.

    Args:
        what: name of the bar.
        folders: folders of the runs. Their files show which runs are running: a run may be on another machine.
        show: print anything at all.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, quiet=not show, highlight=False, markup=False, soft_wrap=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task(what, total=len(folders), failed="")
    live = show and is_live(console)
    before = {folder.path: _marked(folder) for folder in folders} if live else {}
    progress = _StudyProgress(console, bar, task, list(folders), before)
    if not live:  # rich before 14.1 ends bars that are off with an empty line
        yield progress
        return
    with Live(console=console, transient=True, refresh_per_second=2, get_renderable=progress.drawn):
        yield progress


def _marked(folder: RunFolder) -> float:
    """Return the time of the mark that a run writes when it starts; 0 without."""
    try:
        return (folder.path / MARK).stat().st_mtime
    except OSError:
        return 0.0


def _epoch(folder: RunFolder) -> int | None:
    """Return the last epoch in a run's `metrics.csv`; None before the first one ended."""
    try:
        with folder.metrics.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    first = lines[-1].partition(",")[0] if len(lines) > 1 else ""
    return int(first) if first.isdecimal() else None
