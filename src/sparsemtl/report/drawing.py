"""Inline SVG that takes colours and fonts from the page, and so follows its light and dark mode.

Matplotlib draws with placeholder colours, each of which is then replaced by a variable of the style sheet.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sparsemtl.report.ticks import PAD, Room, draw_ticks, estimated_room

INK, MUTED, RULE, BAD = "#010101", "#020202", "#030303", "#040404"
_SERIES = 10
"""Number of colours of tasks or methods; the colours repeat after that."""
NEUTRAL = -1
"""Index of the colour of figures of all tasks together."""

_LEFT, _BELOW = 50, 42
"""Room for labels while they are measured, in pixels: near to what most charts need."""

_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", BAD: "bad"}
_VARIABLES |= {f"#0505{i:02x}": f"c{i}" for i in range(_SERIES)}

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 12,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
}


def series(index: int) -> str:
    """Return the placeholder of the colour of a task or method, by index."""
    return INK if index == NEUTRAL else f"#0505{index % _SERIES:02x}"


def css(index: int) -> str:
    """Return the colour of a task or method in a style sheet, by index."""
    return f"var(--c{index % _SERIES})"


def draw(plot: Callable[[Axes], None], *, width: int, height: int, label: str, only_ticks: bool = False) -> Markup:
    """Draw one set of axes as an SVG element.

    Args:
        plot: function that draws on the axes, in the colours of this module.
        width: width in pixels; the figure shrinks if the page is narrower.
        height: height in pixels.
        label: text for screen readers.
        only_ticks: the only texts outside of the axes are horizontal labels of ticks, and the name of the horizontal
            axis. They are then drawn in half of the time of a chart.
    """
    with rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        # `savefig` would draw the figure twice, the first time for a bounding box that is not asked for.
        canvas: Any = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_axes((_LEFT / width, _BELOW / height, 1 - _LEFT / width, 1 - _BELOW / height))
        axes.patch.set_visible(False)
        plot(axes)
        room = estimated_room(axes) if only_ticks else _measured_room(axes)
        room.place(axes, width, height)
        if only_ticks:
            draw_ticks(axes, grid=RULE, text=MUTED)
        file = io.StringIO()
        canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_for_page(file.getvalue(), width, height, label))


def _measured_room(axes: Axes) -> Room:
    """Return the room for all texts.

    The labels are measured once; matplotlib's constrained layout measures them twice, in half of the time of a chart.
    """
    own, whole = axes.get_window_extent(), axes.get_tightbbox(for_layout_only=True)
    assert whole is not None  # of visible axes
    left, below = own.x0 - whole.x0 + PAD, own.y0 - whole.y0 + PAD
    return Room(left, below, whole.x1 - own.x1 + PAD, whole.y1 - own.y1 + PAD)


def _for_page(svg: str, width: int, height: int, label: str) -> str:
    """Turn an SVG document into an element of a page: without prolog, namespaces and fixed colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<svg[^>]*>", "", body, count=1)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    # Groups have the same ids in every figure, and nothing refers to them; matplotlib salts the other ids.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = body.replace("xlink:href", "href").replace("'DejaVu Sans'", "inherit")
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    # Text in the colour of a method is mixed with the colour of text: a contrast of 4.5 to the page needs it.
    body = re.sub(r"(<text[^>]*?fill: )var\(--(c\d)\)", r"\1color-mix(in srgb, var(--\2) 65%, var(--ink))", body)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(label)}">{body}'
