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
from matplotlib.cbook import strip_math
from matplotlib.figure import Figure

INK, MUTED, RULE, BAD = "#010101", "#020202", "#030303", "#040404"
_SERIES = 10
"""Number of colours of tasks or methods; the colours repeat after that."""
NEUTRAL = -1
"""Index of the colour of figures of all tasks together."""

_PAD = 3
"""Room around axes and labels, in pixels."""
_CHARACTER, _LINE, _GAP = 7.3, 14, 4
"""Width of a character and height of a line of labels, and their distance from the axes, in pixels."""
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
            axis. Their size is then estimated: to measure them takes a fifth of the time of a chart.
    """
    with rc_context({**_STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        # `savefig` would draw the figure twice, the first time for a bounding box that is not asked for.
        canvas: Any = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_axes((_LEFT / width, _BELOW / height, 1 - _LEFT / width, 1 - _BELOW / height))
        axes.patch.set_visible(False)
        plot(axes)
        left, below, right, above = _estimated(axes) if only_ticks else _measured(axes)
        axes.set_position((left / width, below / height, 1 - (left + right) / width, 1 - (below + above) / height))
        file = io.StringIO()
        canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_for_page(file.getvalue(), width, height, label))


def _measured(axes: Axes) -> tuple[float, float, float, float]:
    """Return the room for texts on the left, below, on the right and above the axes, in pixels.

    The labels are measured once; matplotlib's constrained layout measures them twice, in half of the time of a chart.
    """
    own, whole = axes.get_window_extent(), axes.get_tightbbox(for_layout_only=True)
    assert whole is not None  # of visible axes
    left, below = own.x0 - whole.x0 + _PAD, own.y0 - whole.y0 + _PAD
    return left, below, whole.x1 - own.x1 + _PAD, whole.y1 - own.y1 + _PAD


def _estimated(axes: Axes) -> tuple[float, float, float, float]:
    """Return the room as `_measured`, for axes whose texts are labels of ticks and the name of the horizontal axis."""
    horizontal, vertical = ([_CHARACTER * len(text) for text in _labels(axis)] for axis in (axes.xaxis, axes.yaxis))
    half = max(horizontal, default=0) / 2  # of a label at an end of the axis
    lines = bool(horizontal) + bool(axes.get_xlabel())
    left = max(half, max(vertical, default=0) + _GAP)
    return left + _PAD, lines * (_LINE + _GAP) + _PAD, half + _PAD, _LINE / 2 + _PAD


def _labels(axis: Any) -> list[str]:
    """Return the labels of the ticks that are shown."""
    places, (low, high) = axis.get_majorticklocs(), sorted(axis.get_view_interval())
    texts = axis.get_major_formatter().format_ticks(places)
    return [strip_math(text) for place, text in zip(places, texts, strict=True) if low <= place <= high]


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
