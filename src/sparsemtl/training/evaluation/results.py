"""Results of an evaluation: task -> metric -> value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.views.plots import axes_or_new, draw_bars
from sparsemtl.views.tables import Table, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Results(dict[str, dict[str, float]]):
    """Task -> metric -> value, a dict that notebooks show as a table; `loss` is among the metrics.

    Examples:
        >>> results = Results({"digit": {"loss": 0.3, "accuracy": 0.9}, "parity": {"loss": 0.1, "accuracy": 0.97}})
        >>> results["digit"]["accuracy"]
        0.9
    """

    def _repr_html_(self) -> str:
        """Return the metrics as a table, for notebooks."""
        metrics = list(dict.fromkeys(name for values in self.values() for name in values))
        rows: list[list[Value]] = [[task, *map(values.get, metrics)] for task, values in self.items()]
        return Table(["task", *metrics], rows).html()

    def plot(self, metric: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw a metric as one bar per task, and return the axes.

        Args:
            metric: its name; by default the primary metric of each task, the first one after the loss.
            ax: axes of matplotlib; by default those of a new figure.

        Raises:
            ParameterError: if no task has the metric.
            MissingExtraError: if matplotlib is not installed.
        """
        chosen = {t: _primary(values) if metric is None else metric for t, values in self.items()}
        bars = {task: self[task][name] for task, name in chosen.items() if name in self[task]}
        if not bars:
            known = {name for values in self.values() for name in values}
            raise ParameterError(
                unknown_name("metric", str(metric), known) if self else "there are no results to draw."
            )
        ax = axes_or_new(ax, height=1.0 + 0.4 * len(bars))
        names = {chosen[task] for task in bars}
        labels = [task if len(names) == 1 else f"{task}: {chosen[task]}" for task in bars]
        draw_bars(ax, labels, list(bars.values()))
        ax.set_xlabel(names.pop() if len(names) == 1 else "")
        return ax


def _primary(values: dict[str, float]) -> str:
    """Return the first metric that is not the loss; the loss if there is no other."""
    return next((name for name in values if name != "loss"), "loss")
