"""Cost of a run's networks, for the head of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsemtl.report.words import count, number, percent
from sparsemtl.study.costs import ENCODER_MACS, LATENCY, MACS, WEIGHTS

_FIGURES = {
    MACS: "multiply-adds per sample",
    ENCODER_MACS: "of them in the encoder",
    WEIGHTS: "weights",
    LATENCY: "milliseconds per batch",
}


@dataclass(frozen=True)
class CostFigure:
    """One figure before and after compaction.

    Attributes:
        name: name of the figure, with its unit.
        compacted: the figure after compaction, as text.
        uncompacted: the figure before compaction, as text.
        part: compacted / uncompacted; 1 if the figure was 0 before.
    """

    name: str
    compacted: str
    uncompacted: str
    part: float


@dataclass(frozen=True)
class _CostView:
    """Cost of a run.

    Attributes:
        lead: the cost in one sentence.
        figures: figures of all tasks together.
        networks: tasks of a network -> its figures; empty if one network serves all tasks.
        failures: tasks of a network that could not be compacted -> reason.
        how: conditions under which the latency was measured.
    """

    lead: str
    figures: list[CostFigure]
    networks: Mapping[str, list[CostFigure]]
    failures: Mapping[str, str]
    how: str


def cost_view(summary: Mapping[str, Any]) -> _CostView | None:
    """Return the cost in `summary.json` as text; None if the run was not measured."""
    cost = summary.get("cost")
    if not cost:
        return None
    networks = cost["networks"]
    names = [", ".join(network["tasks"]) for network in networks]
    figures = _figures(cost)
    macs, _, weights, _ = figures
    whose = "the network of all tasks needs" if len(networks) == 1 else f"the {len(networks)} networks together need"
    threads = "1 thread" if cost["threads"] == 1 else f"{cost['threads']} threads"
    return _CostView(
        lead=f"Compacted, {whose} {macs.compacted} multiply-adds per sample ({percent(macs.part)} of the uncompacted "
        f"{macs.uncompacted}) and {weights.compacted} weights ({percent(weights.part)}).",
        figures=figures,
        networks=dict(zip(names, map(_figures, networks), strict=True)) if len(networks) > 1 else {},
        failures={name: n["failure"] for name, n in zip(names, networks, strict=True) if n["failure"]},
        how=f"Milliseconds: median of a batch of {cost['batch_size']} samples on {threads} ({cost['device']}), "
        "measured at the end of the run on the machine that trained it, possibly beside other work.",
    )


def _figures(cost: Mapping[str, Any]) -> list[CostFigure]:
    before, after = cost["uncompacted"], cost["compacted"]
    return [
        CostFigure(
            name,
            number(after[key]) if key == LATENCY else count(after[key]),
            number(before[key]) if key == LATENCY else count(before[key]),
            after[key] / before[key] if before[key] else 1.0,
        )
        for key, name in _FIGURES.items()
    ]
