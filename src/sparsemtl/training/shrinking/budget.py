"""Budgets of a shrink: multiply-adds, weights, milliseconds, or the largest loss of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from sparsemtl.errors import ParameterError, unknown_name

KINDS = ("macs", "weights", "milliseconds", "max_drop")


@dataclass(frozen=True)
class Budget:
    """Budgets of one kind.

    Attributes:
        kind: one of `KINDS`.
        values: what to reach, the largest first; empty for `max_drop`.
        max_drop: task -> largest loss of its primary metric, as a fraction of the dense network's; else empty.
    """

    kind: str
    values: tuple[float, ...]
    max_drop: Mapping[str, float]

    def name(self, value: float) -> str:
        """Return the name of the network of a budget, such as "macs 0.3"."""
        return f"{'macs' if self.max_drop else self.kind} {value:.3g}"


def budget_of(given: float | Sequence[float] | Mapping[str, Any], tasks: Iterable[str]) -> Budget:
    """Return the budgets that an argument stands for; see `sm.shrink`.

    Args:
        given: a number, several, or a mapping of one kind.
        tasks: names of the tasks.

    Raises:
        ParameterError: if the kind is unknown, or a number out of its range.
    """
    kind, value = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else ("macs", given)
    if isinstance(value, Mapping) and kind != "max_drop":
        raise ParameterError(f"budget: expected one of {', '.join(KINDS)} with its number, got {given!r}.")
    if kind not in KINDS:
        raise ParameterError(f"budget: {unknown_name('kind', kind, KINDS)}")
    if kind == "max_drop":
        return Budget(kind, (), _drops(value, list(tasks)))
    values = [value] if isinstance(value, (int, float)) else list(value)
    top = float("inf") if kind == "milliseconds" else 1.0
    if not values or not all(_is_number(each) and 0 < each < top for each in values):
        raise ParameterError(f"budget: expected numbers in (0, {top:g}) for `{kind}`, got {value!r}.")
    return Budget(kind, tuple(sorted({float(each) for each in values}, reverse=True)), {})


def _drops(value: Any, tasks: Sequence[str]) -> dict[str, float]:
    drops = dict(value) if isinstance(value, Mapping) else dict.fromkeys(tasks, value)
    for task, drop in drops.items():
        if task not in tasks:
            raise ParameterError(f"budget: max_drop: {unknown_name('task', task, tasks)}")
        if not _is_number(drop) or not 0 <= drop < 1:
            raise ParameterError(f"budget: expected a fraction in [0, 1) as `max_drop` of task {task!r}, got {drop!r}.")
    return drops


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
