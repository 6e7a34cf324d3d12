"""Live progress bar of a run: losses and metrics per task, speed, time left. Only lines where it cannot be redrawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsemtl.storage.metrics import MetricRow
from sparsemtl.training.callbacks.callback import Callback, FitInfo, StepInfo
from sparsemtl.views.bars import is_live


class ProgressBar(Callback):
    """Shows a live progress bar on standard error, and one line per epoch.

    A line holds every task's primary metric on validation data, and what was measured of all tasks together. A star
    marks the best epoch so far. The bar is shown in a terminal, and in a notebook where ipywidgets is installed;
    elsewhere there are only the lines.
    """

    def __init__(self) -> None:
        self._console: Any = None
        self._bars: Any = None
        self._run: FitInfo | None = None
        self._epoch = 0

    def on_fit_start(self, run: FitInfo) -> None:
        """Show the bars."""
        from rich.console import Console
        from rich.progress import (  # fmt: skip
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._run = run
        self._epoch = 0
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
            disable=not is_live(self._console),
        )
        if not self._bars.disable:  # rich before 14.1 ends bars that are off with an empty line
            self._bars.start()
        self._whole = self._bars.add_task("run", total=run.epochs, speed="", figures="")
        self._steps = self._bars.add_task("epoch", total=None, speed="", figures="")

    def on_step(self, step: StepInfo) -> None:
        """Show the losses of a step."""
        if self._bars.disable:
            return
        if step.epoch != self._epoch:
            self._epoch = step.epoch
            self._bars.update(self._whole, completed=step.epoch - 1)
            self._bars.reset(self._steps, total=step.batches, description=f"epoch {step.epoch}", speed="", figures="")
        figures = "  ".join(f"{task} {loss:.3f}" for task, loss in step.losses.items())
        speed = f"{step.samples_per_second:,.0f} samples/s"
        self._bars.update(self._steps, completed=step.batch, speed=speed, figures=figures)

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Print the line of an epoch."""
        assert self._run is not None
        epoch, primary = rows[0].epoch, self._run.primary
        validation = [r for r in rows if r.split == "validation" and r.name == primary[r.task]]
        measured = [r for r in rows if r.split in ("sharing", "architecture") and not r.task]
        figures = "  ".join(f"{row.task} {row.name} {row.value:.4f}" for row in validation)
        figures += "".join(f"  {row.name.replace('_', ' ')} {row.value:.4g}" for row in measured)
        line = f"epoch {epoch:>3}/{self._run.epochs}  {figures}{'  *' if improved else ''}"
        self._bars.update(self._whole, completed=epoch)
        self._console.print(line, highlight=False, soft_wrap=True)

    def on_fit_end(self) -> None:
        """Hide the bars."""
        if not self._bars.disable:
            self._bars.stop()
        self._bars = self._console = None  # a trainer can be pickled after training
