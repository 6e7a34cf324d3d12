"""Page of a compaction: cost before and after, verification, and what was removed from every layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sparsemtl.compaction.report import FOLDED, CompactionReport, LayerReport
from sparsemtl.report.page import render
from sparsemtl.report.run_cost import CostFigure
from sparsemtl.report.words import count, listing, percent, plural
from sparsemtl.views.tables import Table, Written

Change = tuple[float, float]


@dataclass(frozen=True)
class _Row:
    """Layer of the table, as text.

    Attributes:
        why: number of the reason why channels stay; None if there is none.
        part: fraction of the multiply-adds that is left; None for layers without any.
    """

    name: str
    kind: str
    inputs: str
    outputs: str
    heads: str
    parameters: str
    macs: str
    activations: str
    why: int | None
    removed: bool
    part: float | None


@dataclass(frozen=True)
class _Reason:
    """Reason why channels stay.

    Attributes:
        why: the reason.
        layers: names of the layers.
        macs: multiply-adds that are left in them, with their fraction of all that are left.
    """

    why: str
    layers: str
    macs: str


def compaction_page(report: CompactionReport, *, title: str = "Compacted network") -> str:
    """Return the report of a compaction as a page of HTML, in one file that loads nothing.

    Args:
        report: attribute `report` of a compacted network.
        title: heading of the page, such as the name of the task.
    """
    shown = [each for each in report.layers if not _is_folded(each)]
    folded = Counter(each.kind for each in report.layers if _is_folded(each))
    figures, reasons = list(_figures(report)), list(_reasons(shown))
    numbers = {reason.why: number for number, reason in enumerate(reasons, 1)}
    return render(
        "compaction.html",
        title=title,
        lead=_lead(report, figures),
        facts=list(_facts(report)),
        how=_how(report),
        figures=figures,
        verification=report.verification,
        differences=_differences(report),
        rows=[_row(each, numbers.get(_reason_of(each))) for each in shown],
        heads=any(any(each.heads) for each in shown),
        folded=f"{listing(f'{plural(n, kind)}' for kind, n in folded.items())}, part of the layers before them"
        if folded
        else "",
        reasons=reasons,
    )


def _is_folded(layer: LayerReport) -> bool:
    return layer.removed and layer.why == FOLDED


def _figures(report: CompactionReport) -> Iterator[CostFigure]:
    """Yield the costs before and after."""
    yield _figure("parameters", report.parameters, count)
    if report.macs is not None:
        yield _figure("multiply-adds", report.macs, count)
    if report.memory is not None:
        before, after = report.memory
        yield _figure("activations, peak", (before.peak, after.peak), _size)
        yield _figure("activations, sum", (before.total, after.total), _size)


def _figure(name: str, change: Change, write: Callable[[float], str]) -> CostFigure:
    before, after = change
    return CostFigure(name, write(after), write(before), after / before if before else 1.0)


def _size(number: float) -> str:
    """Return a number of bytes, "157 kB"."""
    text = count(number)
    return f"{text}B" if text[-1].isalpha() else f"{text}\N{NO-BREAK SPACE}B"


def _lead(report: CompactionReport, figures: Sequence[CostFigure]) -> str:
    """Return the result in a sentence or two."""
    macs = next((each for each in figures if each.name == "multiply-adds"), None)
    parameters = figures[0]
    cost = f"{parameters.compacted} parameters ({percent(parameters.part)} of {parameters.uncompacted})"
    if macs is not None:
        cost = f"{macs.compacted} multiply-adds per sample ({percent(macs.part)} of {macs.uncompacted}) and {cost}"
    checked = report.verification
    if not checked.verified:
        return f"The compacted network needs {cost}. It was not compared with the model."
    same = "the same up to rounding" if checked.equal else "not the same"
    return f"The compacted network needs {cost}. Its outputs are {same}."


def _facts(report: CompactionReport) -> Iterator[tuple[str, str]]:
    changes = Counter(each.change for each in report.layers if not _is_folded(each))
    for change in ("smaller", "unchanged", "removed"):
        yield f"layers {change}", f"{changes[change]:,}"
    if report.example is not None:
        yield "example", report.example_shapes()


def _how(report: CompactionReport) -> str:
    if report.macs is None:
        return "The bar is the fraction that is left. Nothing was run, since there was no example."
    return (
        "The bar is the fraction that is left. Multiply-adds of convolutions and linear layers on one sample of the "
        "example. Activations are the tensors of one forward pass on that sample, besides weights and inputs: the "
        "largest sum of those alive at the same time, and the sum of all."
    )


def _differences(report: CompactionReport) -> Table:
    outputs = report.verification.outputs
    names = [name for name in ("float64", "float32") if any(name in found for found in outputs.values())]
    rows = [(output, *(_difference(found.get(name)) for name in names)) for output, found in outputs.items()]
    return Table(("output", *names), rows)


def _difference(error: float | None) -> Written | None:
    return None if error is None else Written(error, f"{error:.1e}" if error else "0")


def _row(layer: LayerReport, why: int | None) -> _Row:
    before, after = layer.macs
    return _Row(
        name=layer.name,
        kind=layer.kind,
        inputs=_change(layer.inputs),
        outputs=_change(layer.outputs),
        heads=_change(layer.heads),
        parameters=_change(layer.parameters),
        macs=_change(layer.macs),
        activations=_change(layer.activations),
        why=why,
        removed=layer.removed,
        part=after / before if before else None,
    )


def _change(numbers: Change) -> str:
    before, after = (count(number) for number in numbers)
    if not any(numbers):
        return ""
    return before if numbers[0] == numbers[1] else f"{before} → {after}"


def _reason_of(layer: LayerReport) -> str:
    """Return the reason why channels of a layer stay, without their number."""
    return re.sub(r": \d+\b", "", layer.why)


def _reasons(layers: Sequence[LayerReport]) -> Iterator[_Reason]:
    """Yield the reasons why channels stay, those with the most multiply-adds first."""
    whole = sum(each.macs[1] for each in layers)
    held: dict[str, list[LayerReport]] = {}
    for layer in layers:
        if layer.why:
            held.setdefault(_reason_of(layer), []).append(layer)
    for why, found in sorted(held.items(), key=lambda item: -sum(each.macs[1] for each in item[1])):
        left = sum(each.macs[1] for each in found)
        part = f" ({percent(left / whole)})" if whole else ""
        yield _Reason(why, ", ".join(each.name for each in found), f"{count(left)}{part}")
