"""Two kinds of charts: lines over epochs or over a key of a grid, and gains with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sparsemtl.report.drawing import BAD, INK, MUTED, draw, series
from sparsemtl.views.plots import EPOCHS, Axis, Gain, Line, Palette, draw_gains, draw_lines

WIDTH, HEIGHT = 340, 200
PAGE = Palette(series, INK, MUTED, BAD)
"""Colours of the page."""


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


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    axis: Axis = EPOCHS,
    marks: Sequence[tuple[float, float, int]] = (),
    levels: Sequence[tuple[float, int]] = (),
) -> Markup:
    """Draw lines over epochs, or over a key of a grid; see `draw_lines`.

    Args:
        lines: the lines.
        label: text for screen readers.
        axis: the horizontal axis.
        marks: (x, y, colour) of marked points.
        levels: (y, colour) of horizontal lines, for values without a position on the axis.
    """
    return draw(
        lambda axes: draw_lines(axes, lines, palette=PAGE, axis=axis, marks=marks, levels=levels),
        width=WIDTH,
        height=HEIGHT,
        label=label,
        only_ticks=True,
    )


def gain_chart(gains: Sequence[Gain], *, label: str) -> Markup:
    """Draw changes against the baseline, one row per method; worse is left of zero."""
    return draw(
        lambda axes: draw_gains(axes, gains, palette=PAGE),
        width=WIDTH,
        height=46 + 26 * len(gains),
        label=label,
        only_ticks=True,
    )
