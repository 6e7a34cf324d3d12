"""Compute groups: metrics with the same states, such as precision and recall, of which one is updated for all.

torchmetrics' `MetricCollection` has such groups too, but is no dictionary of independent metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchmetrics.metric import Metric

_GROUP = "_compute_group"


def group_metrics(metrics: Mapping[str, Metric], *names: str) -> None:
    """Declare that the metrics of these names have the same states after the same updates."""
    for name in names:
        vars(metrics[name])[_GROUP] = names


def updated_metrics(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metrics to update: the first of each group, and all without a group."""
    return {name: metrics[name] for name in dict.fromkeys(_leaders(metrics).values())}


def hand_on_states(metrics: Mapping[str, Metric]) -> None:
    """Give the other metrics of each group the states of its first one, by reference."""
    for name, leader in _leaders(metrics).items():
        metric, first = metrics[name], metrics[leader]
        if metric is not first:
            states = {state: getattr(first, state) for state in first._defaults}
            vars(metric).update(states, _update_count=first._update_count, _computed=None)


def _leaders(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Return name of a metric -> name of the one that is updated for it."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(vars(metric).get(_GROUP, name), name) for name, metric in metrics.items()}
