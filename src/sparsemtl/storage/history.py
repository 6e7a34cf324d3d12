"""History of a run: its figures as a frame of pandas that draws learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.plotting import PlotAccessor

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.views.plots import Line, axes_or_new, draw_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class History(pd.DataFrame):
    """Figures of a run, one per row: epoch, step, split, task, metric, value.

    A frame of pandas in every way; only `plot()` without the arguments of pandas draws learning curves. Selections of
    rows stay histories: `history.query("task == 'digit'").plot(metric="accuracy")`.

    Examples:
        >>> rows = [(epoch, 10 * epoch, "validation", "digit", "loss", 1 / epoch) for epoch in (1, 2)]
        >>> history = History(rows, columns=["epoch", "step", "split", "task", "metric", "value"])
        >>> history.query("epoch == 2")["value"].tolist()
        [0.5]
    """

    @property
    def _constructor(self) -> type[History]:
        return History

    @property
    def plot(self) -> HistoryPlot:
        """Drawing of the history, see `HistoryPlot`."""
        return HistoryPlot(self)


class HistoryPlot(PlotAccessor):
    """Drawing of a history; with arguments of pandas, pandas' own drawing of the frame."""

    _parent: pd.DataFrame

    def __call__(self, *args: Any, metric: str = "loss", ax: Axes | None = None, **options: Any) -> Any:
        """Draw a figure over the epochs, one line per task, and return the axes.

        The solid line is of validation data; training data are dashed, test data left out.

        Args:
            args: arguments of `pandas.DataFrame.plot`; with any of them pandas draws the frame.
            metric: name in the column `metric`.
            ax: axes of matplotlib; by default those of a new figure.
            options: keyword arguments of `pandas.DataFrame.plot`.

        Raises:
            ParameterError: if there is no such metric.
            MissingExtraError: if matplotlib is not installed.
        """
        if args or options:
            return super().__call__(*args, ax=ax, **options)
        frame = self._parent
        chosen = frame[(frame["metric"] == metric) & (frame["split"] != "test")]
        if chosen.empty:
            raise ParameterError(unknown_name("metric", metric, frame["metric"].unique()))
        ax = axes_or_new(ax)
        draw_lines(ax, _lines(chosen))
        ax.set_ylabel(metric)
        if (chosen["task"] != "").any():
            ax.legend()
        return ax


def _lines(chosen: pd.DataFrame) -> list[Line]:
    """Return one line per task and split."""
    colours = {task: i for i, task in enumerate(chosen["task"].unique())}
    several = chosen.groupby("task")["split"].nunique().max() > 1
    lines = []
    for (task, split), rows in chosen.groupby(["task", "split"], sort=False):
        curve = rows.groupby("epoch")["value"].mean()
        label = f"{task}, {split}" if several else str(task)
        lines.append(Line(list(curve.index), list(curve), colours[task], dashed=split == "train", label=label))
    return lines
