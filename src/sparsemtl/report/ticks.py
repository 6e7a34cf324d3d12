"""Grid and labels of a chart, drawn as lines and texts in the place of matplotlib's ticks.

A tick of matplotlib is five artists, which are made, copied and measured one by one: half of the time of a chart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.cbook import strip_math
from matplotlib.collections import LineCollection
from matplotlib.ticker import NullLocator

PAD = 3
"""Room around axes and labels, in pixels."""
_CHARACTER, _LINE, _GAP = 7.3, 14, 4
"""Width of a character and height of a line of labels, and their distance from the axes, in pixels."""


class Room(NamedTuple):
    """Room for texts outside of the axes, in pixels."""

    left: float
    below: float
    right: float
    above: float

    def place(self, axes: Axes, width: int, height: int) -> None:
        """Place the axes so that they and the room fill a figure of this size in pixels."""
        size = (1 - (self.left + self.right) / width, 1 - (self.below + self.above) / height)
        axes.set_position((self.left / width, self.below / height, *size))


def estimated_room(axes: Axes) -> Room:
    """Return the room for the labels of ticks and the name of the horizontal axis."""
    horizontal, vertical = (
        [_CHARACTER * len(strip_math(text)) for _, text in _labels(axis)] for axis in (axes.xaxis, axes.yaxis)
    )
    half = max(horizontal, default=0) / 2  # of a label at an end of the axis
    lines = bool(horizontal) + bool(axes.get_xlabel())
    left = max(half, max(vertical, default=0) + _GAP)
    return Room(left + PAD, lines * (_LINE + _GAP) + PAD, half + PAD, _LINE / 2 + PAD)


def draw_ticks(axes: Axes, *, grid: str, text: str) -> None:
    """Draw the grid, the labels of the major ticks and the name of the horizontal axis of axes in their place.

    Args:
        axes: the axes; they have no major ticks afterwards.
        grid: colour of the grid.
        text: colour of the texts; `tick_params` may set another one for the labels of an axis.
    """
    area = axes.get_window_extent()
    axes.set_xlim(axes.get_xlim())  # as it is: a line of the grid moves no limit
    axes.set_ylim(axes.get_ylim())
    for axis, across, beside in (
        (axes.xaxis, axes.get_xaxis_transform(), _GAP / area.height),
        (axes.yaxis, axes.get_yaxis_transform(), _GAP / area.width),
    ):
        upright, labels, style = axis is axes.xaxis, _labels(axis), axis.get_tick_params()
        if style.get("gridOn", True):
            lines = [[(at, 0), (at, 1)] if upright else [(0, at), (1, at)] for at, _ in labels]
            drawn = LineCollection(lines, transform=across, colors=grid, linewidths=0.7, zorder=0.5)
            axes.add_collection(drawn, autolim=False)
        where: dict[str, Any] = {"ha": "center", "va": "top"} if upright else {"ha": "right", "va": "center_baseline"}
        for at, label in labels:
            place = (at, -beside) if upright else (-beside, at)
            axes.text(*place, label, transform=across, color=style.get("labelcolor", text), **where)
        axis.set_major_locator(NullLocator())
    below = (2 * _GAP + _LINE) / area.height
    axes.text(0.5, -below, axes.get_xlabel(), transform=axes.transAxes, color=text, ha="center", va="top")
    axes.set_xlabel("")


def _labels(axis: Any) -> list[tuple[float, str]]:
    """Return place and label of the major ticks that are shown."""
    places, (low, high) = axis.get_majorticklocs(), sorted(axis.get_view_interval())
    texts = axis.get_major_formatter().format_ticks(places)
    return [(place, text) for place, text in zip(places, texts, strict=True) if low <= place <= high]
