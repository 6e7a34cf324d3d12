"""A live bar while training: losses and metrics by task, speed, time left. Plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sparsemtl.training.evaluation import Results


class Progress:
    """Shows a run.

    Args:
        epochs: epochs in all.
        show: nothing is printed if False.
    """

    def __init__(self, epochs: int, *, show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self.epochs = epochs
        self.show = show
        self.console = Console(stderr=True, quiet=not show)
        self._live = show and self.console.is_terminal
        columns = [
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        self._bars = Bars(*columns, console=self.console, transient=True, disable=not self._live)
        self._whole: Any = None
        self._steps: Any = None

    def __enter__(self) -> Progress:
        self._bars.start()
        self._whole = self._bars.add_task("run", total=self.epochs, speed="", figures="")
        self._steps = self._bars.add_task("epoch", total=None, speed="", figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin_epoch(self, epoch: int, steps: int | None) -> None:
        """Show an epoch (counted from 0) with this many steps."""
        self._bars.update(self._whole, completed=epoch)
        self._bars.reset(self._steps, total=steps, description=f"epoch {epoch + 1}", speed="", figures="")

    def step(self, done: int, losses: Mapping[str, float], samples_per_second: float) -> None:
        """Show the losses of a step."""
        if self._live:
            figures = "  ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
            speed = f"{samples_per_second:,.0f} samples/s"
            self._bars.update(self._steps, completed=done, speed=speed, figures=figures)

    def end_epoch(
        self,
        epoch: int,
        validation: Results,
        primary: Mapping[str, str],
        measures: Mapping[str, float],
        *,
        better: bool,
    ) -> None:
        """Leave a line with every task's primary validation metric, and what the sharing method measures as a whole."""
        self._bars.update(self._whole, completed=epoch + 1)
        figures = "  ".join(f"{t} {primary[t]} {results[primary[t]]:.4f}" for t, results in validation.items())
        figures += "".join(f"  {name.replace('_', ' ')} {value:.4g}" for name, value in measures.items())
        self.console.print(
            f"epoch {epoch + 1:>3}/{self.epochs}  {figures}{'  *' if better else ''}", highlight=False, soft_wrap=True
        )
