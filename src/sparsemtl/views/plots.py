"""Drawings on axes of matplotlib: lines, gains with error bars, bars, heat maps.

The report draws lines and gains as well, in the colours of its page (`Palette`). matplotlib is imported where something
is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemtl.errors import ParameterError, missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CELLS = 200
"""Cells of a heat map up to which their values are written into them."""


@dataclass(frozen=True)
class Palette:
    """Colours of a drawing.

    Attributes:
        series: index of a task or method -> its colour.
        ink: colour of important lines and labels.
        muted: colour of lines that guide the eye.
        bad: colour of the side on which values are worse.
    """

    series: Callable[[int], str]
    ink: str
    muted: str
    bad: str


NOTEBOOK = Palette(lambda index: f"C{index % 10}", "0.35", "0.6", "tab:red")
"""Colours of matplotlib's own cycle, readable on light and dark backgrounds."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        x: positions, in order.
        y: values.
        colour: index of the task or method.
        dashed: draw the line dashed and thin, as training curves are.
        deviation: half height of the band around the line, NaN for no band.
        dots: mark every value.
        label: name in the legend; "" for none.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False
    deviation: Sequence[float] = ()
    dots: bool = False
    label: str = ""


@dataclass(frozen=True)
class Gain:
    """One row of a chart of gains.

    Attributes:
        label: the method.
        colour: index of the method.
        mean: mean gain in per cent, positive is better; NaN is left out.
        deviation: standard deviation in per cent, NaN with one seed.
    """

    label: str
    colour: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Axis:
    """Horizontal axis of a chart of lines.

    Attributes:
        label: quantity on the axis.
        ticks: labelled positions; whole numbers if empty.
        log: use a logarithmic scale.
        floor: with `log`, the position below which the scale is linear, so that zero has a place; None for no zero.
    """

    label: str = "epoch"
    ticks: Sequence[float] = ()
    log: bool = False
    floor: float | None = None


EPOCHS = Axis()


def axes_or_new(ax: Axes | None, *, width: float = 6.4, height: float = 4.0) -> Axes:
    """Return the given axes, or those of a new figure of pyplot.

    Args:
        ax: axes of matplotlib.
        width: width of a new figure in inches.
        height: height of a new figure in inches.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        ParameterError: if `ax` is something else than axes.
    """
    try:
        from matplotlib.axes import Axes
    except ImportError:
        raise missing_extra("matplotlib", "report", "Drawing") from None
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(width, height), layout="constrained")
    if not isinstance(ax, Axes):
        raise ParameterError(
            f"`ax` must be axes of matplotlib, as `plt.subplots()` returns them, got {type(ax).__name__}."
        )
    return ax


def draw_lines(
    axes: Axes,
    lines: Sequence[Line],
    *,
    palette: Palette = NOTEBOOK,
    axis: Axis = EPOCHS,
    marks: Sequence[tuple[float, float, int]] = (),
    levels: Sequence[tuple[float, int]] = (),
) -> None:
    """Draw lines over epochs, or over a key of a grid.

    Args:
        axes: the axes.
        lines: the lines.
        palette: colours.
        axis: the horizontal axis.
        marks: (x, y, colour) of marked points.
        levels: (y, colour) of horizontal lines, for values without a position on the axis.
    """
    for line in lines:
        _line(axes, line, palette.series(line.colour))
    for y, colour in levels:
        axes.axhline(y, color=palette.series(colour), linewidth=1.3, linestyle=(0, (5, 3)), zorder=1.8)
    for x, y, colour in marks:
        axes.axvline(x, color=palette.muted, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.plot([x], [y], "o", color=palette.series(colour), markersize=6.5, zorder=4)
    if axis.log and axis.floor is not None:
        axes.set_xscale("symlog", linthresh=axis.floor)
        axes.set_xlim(left=-axis.floor / 2)
    elif axis.log:
        axes.set_xscale("log")
    _ticks(axes, axis)


def draw_gains(axes: Axes, gains: Sequence[Gain], *, palette: Palette = NOTEBOOK) -> None:
    """Draw changes against the baseline in per cent, one row per method; worse is left of zero."""
    from matplotlib.ticker import MaxNLocator

    places = np.arange(len(gains))[::-1]
    reach = [side for g in gains for side in (g.mean - (g.deviation or 0), g.mean + (g.deviation or 0))]
    finite = [side for side in (*reach, *(g.mean for g in gains), 0.0) if np.isfinite(side)]
    low, high = min(finite), max(finite)
    pad = 0.08 * (high - low) or 1.0
    axes.set_xlim(low - pad, high + pad)
    axes.axvspan(low - pad, 0, color=palette.bad, alpha=0.07, linewidth=0)
    axes.axvline(0, color=palette.ink, linewidth=1)
    for place, gain in zip(places, gains, strict=True):
        deviation = None if np.isnan(gain.deviation) else gain.deviation
        axes.errorbar(
            gain.mean,
            place,
            xerr=deviation,
            fmt="o",
            color=palette.series(gain.colour),
            markersize=7,
            linewidth=1.8,
        )
    axes.set_yticks(places, [gain.label for gain in gains])
    axes.set_ylim(-0.6, len(gains) - 0.4)
    axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
    axes.grid(False, axis="y")
    axes.spines[["left", "top", "right"]].set_visible(False)
    narrow = max(len(gain.label) for gain in gains) > 20  # names leave little room for the axis
    axes.xaxis.set_major_locator(MaxNLocator(2 if narrow else 5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0")


def draw_bars(axes: Axes, labels: Sequence[str], values: Sequence[float], *, errors: Sequence[float] = ()) -> None:
    """Draw horizontal bars, the first one on top, each with its value beside it.

    Args:
        axes: the axes.
        labels: name of each bar.
        values: length of each bar; NaN leaves its row empty.
        errors: half length of each error bar, NaN for none.
    """
    places = np.arange(len(labels))[::-1]
    spread = np.nan_to_num(np.asarray(errors, dtype=float)) if len(errors) else None
    bars = axes.barh(places, np.nan_to_num(np.asarray(values, dtype=float)), xerr=spread, height=0.6)
    axes.bar_label(bars, ["–" if np.isnan(value) else f"{value:.4g}" for value in values], padding=4)
    axes.set_yticks(places, list(labels))
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)  # room for the values
    axes.axvline(0, color=NOTEBOOK.ink, linewidth=1)
    axes.spines[["left", "top", "right"]].set_visible(False)


def draw_shares(axes: Axes, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a heat map of fractions in [0, 1], with their values in the cells if there are few.

    Args:
        axes: the axes.
        values: one row per name in `rows`, one value per name in `columns`.
        rows: names of the rows, the first one on top.
        columns: names of the columns.
    """
    image = axes.imshow(np.asarray(values, dtype=float), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_yticks(range(len(rows)), list(rows))
    turned = sum(map(len, columns)) > 40
    axes.set_xticks(range(len(columns)), list(columns), rotation=90 if turned else 0)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if len(rows) * len(columns) > _MOST_CELLS:
        axes.figure.colorbar(image, ax=axes)
        return
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")


def _line(axes: Axes, line: Line, colour: str) -> None:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=1.2 if line.dashed else 1.8,
        linestyle=(0, (2, 1.5)) if line.dashed else "-",
        marker="o" if line.dots or len(x) == 1 else None,
        markersize=4.5,
        solid_capstyle="round",
        label=line.label or None,
    )
    deviation = np.nan_to_num(np.asarray(line.deviation, dtype=float))
    if deviation.any():
        axes.fill_between(x, y - deviation, y + deviation, color=colour, alpha=0.16, linewidth=0)


def _ticks(axes: Any, axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    axes.set_xlabel(axis.label)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if axis.ticks:
        every = -(-len(axis.ticks) // 4) if axis.log else 1  # labels over decades are long
        labels = [f"{value:g}".replace("e-0", "e-") if i % every == 0 else "" for i, value in enumerate(axis.ticks)]
        axes.set_xticks(axis.ticks, labels)
    elif not axis.log:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(length=0)
