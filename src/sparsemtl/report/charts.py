"""Two kinds of charts: lines over epochs or over a key of a grid, and gains with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from sparsemtl.report.drawing import BAD, INK, MUTED, draw, series
from sparsemtl.report.words import signed

WIDTH, HEIGHT = 340, 200


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
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False
    deviation: Sequence[float] = ()
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its heading.

    Attributes:
        title: heading: a task or a figure.
        unit: unit of the values, with an arrow in the direction of improvement.
        svg: the drawing.
        colour: index of the task whose colour stands beside the heading; None for no colour.
    """

    title: str
    unit: str
    svg: Markup
    colour: int | None = None


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


_EPOCHS = Axis()


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    axis: Axis = _EPOCHS,
    marks: Sequence[tuple[float, float, int]] = (),
    levels: Sequence[tuple[float, int]] = (),
) -> Markup:
    """Draw lines over epochs, or over a key of a grid.

    Args:
        lines: the lines.
        label: text for screen readers.
        axis: the horizontal axis.
        marks: (x, y, colour) of marked points.
        levels: (y, colour) of horizontal lines, for values without a position on the axis.
    """

    def plot(axes: Axes) -> None:
        for line in lines:
            _line(axes, line)
        for y, colour in levels:
            axes.axhline(y, color=series(colour), linewidth=1.3, linestyle=(0, (5, 3)), zorder=1.8)
        for x, y, colour in marks:
            axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            axes.plot([x], [y], "o", color=series(colour), markersize=6.5, zorder=4)
        if axis.log and axis.floor is not None:
            axes.set_xscale("symlog", linthresh=axis.floor)
            axes.set_xlim(left=-axis.floor / 2)
        elif axis.log:
            axes.set_xscale("log")
        _ticks(axes, axis)

    return draw(plot, width=WIDTH, height=HEIGHT, label=label)


def gain_chart(gains: Sequence[Gain], *, label: str) -> Markup:
    """Draw changes against the baseline, one row per method; worse is left of zero."""

    def plot(axes: Axes) -> None:
        places = np.arange(len(gains))[::-1]
        reach = [side for g in gains for side in (g.mean - (g.deviation or 0), g.mean + (g.deviation or 0))]
        finite = [side for side in (*reach, *(g.mean for g in gains), 0.0) if np.isfinite(side)]
        low, high = min(finite), max(finite)
        pad = 0.08 * (high - low) or 1.0
        axes.set_xlim(low - pad, high + pad)
        axes.axvspan(low - pad, 0, color=BAD, alpha=0.07, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
        for place, gain in zip(places, gains, strict=True):
            deviation = None if np.isnan(gain.deviation) else gain.deviation
            axes.errorbar(
                gain.mean,
                place,
                xerr=deviation,
                fmt="o",
                color=series(gain.colour),
                markersize=7,
                linewidth=1.8,
            )
        axes.set_yticks(places, [gain.label for gain in gains])
        axes.set_ylim(-0.6, len(gains) - 0.4)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        narrow = max(len(gain.label) for gain in gains) > 20  # names leave little room for the axis
        axes.xaxis.set_major_locator(MaxNLocator(2 if narrow else 5))
        axes.xaxis.set_major_formatter(lambda value, _: signed(f"{value:+g}") if value else "0")

    return draw(plot, width=WIDTH, height=46 + 26 * len(gains), label=label)


def _line(axes: Axes, line: Line) -> None:
    colour = series(line.colour)
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
    )
    deviation = np.nan_to_num(np.asarray(line.deviation, dtype=float))
    if deviation.any():
        axes.fill_between(x, y - deviation, y + deviation, color=colour, alpha=0.16, linewidth=0)


def _ticks(axes: Any, axis: Axis) -> None:
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
