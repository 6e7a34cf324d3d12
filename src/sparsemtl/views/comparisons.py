"""Drawings that compare methods: critical-difference diagram, performance profiles, bars per task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsemtl.views.plots import NOTEBOOK, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DECADES = 30.0
"""Largest distance to the best in % up to which profiles have a linear axis."""
_STEP = 0.5
"""Distance of two labels of a critical-difference diagram, in units of its vertical axis."""


@dataclass(frozen=True)
class Ranked:
    """One setting of a critical-difference diagram.

    Attributes:
        label: the setting.
        colour: index of the method.
        rank: mean rank, at least 1.
    """

    label: str
    colour: int
    rank: float


def ranks_height(count: int, groups: int) -> float:
    """Return the height of a critical-difference diagram, in units of its vertical axis, for a fixed size of text."""
    return 1.9 + 0.22 * groups + _STEP * ((count + 1) // 2)


def draw_ranks(
    axes: Axes,
    ranked: Sequence[Ranked],
    groups: Sequence[Sequence[str]],
    critical_difference: float,
    *,
    palette: Palette = NOTEBOOK,
) -> None:
    """Draw a critical-difference diagram (Demšar 2006): mean ranks on a line, the best on the left.

    Args:
        axes: the axes.
        ranked: the settings, the best first.
        groups: labels of settings that are joined by a bar, as they do not differ significantly.
        critical_difference: length of the bar above the line.
        palette: colours.
    """
    low, high = 1, max(len(ranked), 2)
    width = high - low
    left, right = low - 0.07 * width, high + 0.07 * width
    axes.plot([low, high], [0, 0], color=palette.ink, linewidth=1.2, solid_capstyle="butt")
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [0, 0.12], color=palette.ink, linewidth=1)
        axes.text(tick, 0.2, str(tick), ha="center", va="bottom", color=palette.muted)
    _bar_of_difference(axes, low, critical_difference, palette)
    places = {one.label: one.rank for one in ranked}
    for i, group in enumerate(groups):
        ends = [places[name] for name in group]
        y = -0.22 * (i + 1)
        pad = 0.008 * width
        axes.plot(
            [min(ends) - pad, max(ends) + pad],
            [y, y],
            color=palette.ink,
            linewidth=4,
            solid_capstyle="round",
            alpha=0.75,
        )
    half = (len(ranked) + 1) // 2
    top = -0.22 * (len(groups) + 1) - 0.2
    for i, one in enumerate(ranked):
        better = i < half
        y = top - _STEP * (i if better else len(ranked) - 1 - i)
        end, sign = (left, -1) if better else (right, 1)
        colour = palette.series(one.colour)
        axes.plot([one.rank, one.rank, end], [0, y, y], color=colour, linewidth=1.4, solid_joinstyle="round")
        axes.plot([one.rank], [0], "o", color=colour, markersize=6, zorder=4, clip_on=False)
        axes.annotate(
            f"{one.label}  {one.rank:.2f}" if better else f"{one.rank:.2f}  {one.label}",
            (end, y),
            xytext=(4 * sign, 0),
            textcoords="offset points",
            ha="right" if better else "left",
            va="center",
            color=colour,
            annotation_clip=False,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(top - _STEP * (half - 1) - 0.35, 1.25)
    axes.axis("off")


def _bar_of_difference(axes: Axes, low: float, length: float, palette: Palette) -> None:
    y = 0.85
    axes.plot([low, low + length], [y, y], color=palette.ink, linewidth=1.2, clip_on=False)
    for end in (low, low + length):
        axes.plot([end, end], [y - 0.08, y + 0.08], color=palette.ink, linewidth=1.2, clip_on=False)
    axes.annotate(
        f"critical difference {length:.2f}",
        (low, y),
        xytext=(0, 6),
        textcoords="offset points",
        ha="left",
        color=palette.muted,
        annotation_clip=False,
    )


def draw_profiles(
    axes: Axes,
    places: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    colours: Mapping[str, int],
    *,
    palette: Palette = NOTEBOOK,
) -> None:
    """Draw performance profiles (Dolan and Moré 2002) as steps; the higher a line, the better.

    Args:
        axes: the axes.
        places: distances to the best figure in %, from 0.
        shares: setting -> fraction of the blocks within each distance.
        colours: setting -> index of its colour.
        palette: colours.
    """
    from matplotlib.ticker import NullLocator

    end = 1.05 * max(places) or 1.0
    wide = end > _DECADES
    for name, values in shares.items():
        axes.plot(
            [*places, end],
            [*values, values[-1]],
            drawstyle="steps-post",
            color=palette.series(colours[name]),
            linewidth=1.8,
            label=name,
        )
    if wide:
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xticks([0, *(10**power for power in range(int(math.log10(end)) + 1))])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(f"at most this much worse than the best, %{' (logarithmic above 1)' if wide else ''}")
    axes.tick_params(length=0)


def bars_floor(low: float, high: float) -> float:
    """Return where the axis of bars begins: at zero, or below the lowest end if all lie in a small part of it."""
    if low < 0:
        return 1.08 * low
    return max(low - 0.3 * (high - low), 0.0) if low > 0.6 * high else 0.0


def draw_task_bars(
    axes: Axes,
    tasks: Sequence[str],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
    colours: Mapping[str, int],
    *,
    palette: Palette = NOTEBOOK,
) -> None:
    """Draw a group of bars per task, one bar per setting, with standard deviations.

    The axis begins at zero, or where all values lie in a small part of it, below the lowest one.

    Args:
        axes: the axes.
        tasks: names of the groups.
        means: setting -> value per task, NaN for none.
        deviations: setting -> standard deviation per task, NaN for none.
        colours: setting -> index of its colour.
        palette: colours.
    """
    from matplotlib.ticker import MaxNLocator

    width = 0.8 / len(means)
    for i, (name, values) in enumerate(means.items()):
        places = np.arange(len(tasks)) - 0.4 + width * (i + 0.5)
        errors = np.nan_to_num(np.asarray(deviations[name], dtype=float))
        axes.bar(places, values, 0.9 * width, color=palette.series(colours[name]), label=name, linewidth=0)
        shown = errors > 0
        axes.errorbar(
            places[shown],
            np.asarray(values, dtype=float)[shown],
            yerr=errors[shown],
            fmt="none",
            color=palette.ink,
            linewidth=1.1,
        )
    sides = [
        (value - spread, value + spread)
        for name, values in means.items()
        for value, spread in zip(values, np.nan_to_num(np.asarray(deviations[name], dtype=float)), strict=True)
        if np.isfinite(value)
    ]
    low, high = min(side for side, _ in sides), max(side for _, side in sides)
    floor = bars_floor(low, high)
    axes.set_ylim(floor, high + 0.04 * (high - floor))
    turned = sum(map(len, tasks)) > 70
    axes.set_xticks(range(len(tasks)), list(tasks), rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_xlim(-0.6, len(tasks) - 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(False, axis="x")
    axes.tick_params(length=0)
