"""Drawing of small networks: change of every task against the multiply-adds that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsemtl.views.plots import NOTEBOOK, Axis, Line, Palette, axes_or_new, draw_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = "multiply-adds left, %"


def _front_lines(record: Mapping[str, Any]) -> list[Line]:
    """Return a line per task: change in per cent against the multiply-adds in per cent of the dense network's.

    Args:
        record: what `ShrinkResult.record` returns.
    """
    networks = sorted(record["networks"], key=lambda network: network["macs"])
    whole = record["networks"][0]["macs"]
    x = [100 * network["macs"] / whole for network in networks]
    return [
        Line(x, [100 * network["tasks"][task]["change"] for network in networks], number, dots=True, label=task)
        for number, task in enumerate(record["tasks"])
    ]


def _front_axis(record: Mapping[str, Any]) -> Axis:
    """Return the horizontal axis, with a tick per network."""
    (line, *_) = _front_lines(record)
    return Axis(LABEL, ticks=[round(x, 1) for x in line.x], log=True)


def draw_front(record: Mapping[str, Any], ax: Axes | None = None, *, palette: Palette = NOTEBOOK) -> Axes:
    """Draw the lines of all tasks, and return the axes.

    Args:
        record: what `ShrinkResult.record` returns.
        ax: axes of matplotlib; by default those of a new figure.
        palette: colours.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    axes = axes_or_new(ax)
    lines = _front_lines(record)
    draw_lines(axes, lines, palette=palette, axis=_front_axis(record))
    axes.axhline(0, color=palette.ink, linewidth=1)
    axes.set_ylabel("change against dense, %")
    axes.set_xlabel(LABEL)
    if palette is NOTEBOOK:
        axes.legend()
    return axes
