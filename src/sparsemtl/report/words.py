"""Numbers and lists as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup, escape

from sparsemtl.study.tables import decimals, to_units
from sparsemtl.views.tables import MISSING


def number(value: float | None) -> str:
    """Return four significant digits, "0.9532"; an en dash if the value is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:,.{decimals([value])}f}"


def count(value: float) -> str:
    """Return a large count with three significant digits, "157 k" or "8.75 M", with a non-breaking space."""
    factor, symbol = to_units([value])
    if not symbol:
        return f"{value:,.0f}"
    return f"{value * factor:,.{decimals([value * factor], significant=3)}f}\N{NO-BREAK SPACE}{symbol}"


def percent(fraction: float) -> str:
    """Return a fraction in per cent, "30 %", "4.2 %" or "0.31 %", with a non-breaking space."""
    value = 100 * fraction
    digits = 0 if value == 0 or value >= 10 else 1 if value >= 1 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Return a time in its largest units: "0.8 s", "45 s", "3 min 12 s", "1 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def signed(text: str) -> str:
    """Replace hyphens by minus signs, which are as wide as plus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


def arrow(higher: bool | None) -> str:
    """Return a space and an arrow in the direction of improvement; "" if there is none."""
    return "" if higher is None else " ↑" if higher else " ↓"


def listing(words: Iterable[str]) -> str:
    """Join words: "a", "a and b", "a, b and c"."""
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str) -> str:
    """Return a count and its noun: "1 task", "3 tasks"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def code(text: str) -> Markup:
    """Return a text as HTML, with what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(Markup(f"<code>{part}</code>") if i % 2 else part for i, part in enumerate(parts))


def scores(values: Sequence[tuple[str, str, float]]) -> str:
    """Return the figures of tasks, grouped by metric: "accuracy 0.9532 on digit and 0.9911 on parity".

    Args:
        values: (task, metric, value) of every task. For more than four tasks with the same metric, their mean stands
            with the lowest and the highest value.
    """
    groups: dict[str, dict[str, float]] = {}
    for task, metric, value in values:
        groups.setdefault(metric, {})[task] = value
    return "; ".join(f"{metric} {_clause(tasks)}" for metric, tasks in groups.items())


def _clause(tasks: Mapping[str, float]) -> str:
    if len(tasks) <= 4:
        return listing(f"{number(value)} on {task}" for task, value in tasks.items())
    low, high = min(tasks, key=tasks.__getitem__), max(tasks, key=tasks.__getitem__)
    mean = sum(tasks.values()) / len(tasks)
    return (
        f"{number(mean)} on average over {len(tasks)} tasks (from {number(tasks[low])} on {low} "
        f"to {number(tasks[high])} on {high})"
    )
