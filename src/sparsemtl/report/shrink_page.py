"""Page of a shrink: what the small networks cost and how good they are, as a picture and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemtl.report.charts import PAGE
from sparsemtl.report.drawing import draw
from sparsemtl.report.page import render
from sparsemtl.report.words import percent
from sparsemtl.training.shrinking.result import table_of
from sparsemtl.views.fronts import draw_front

_WIDTH, _HEIGHT = 760, 320


def shrink_page(record: Mapping[str, Any], *, title: str) -> str:
    """Return the report of a shrink as a page of HTML, in one file that loads nothing.

    Args:
        record: what `ShrinkResult.record` returns.
        title: heading of the page.
    """
    label = "change of every task against multiply-adds"

    def plot(axes: Any) -> None:
        draw_front(record, axes, palette=PAGE)

    return render(
        "shrink.html",
        title=title,
        lead=_lead(record),
        colours={task: number for number, task in enumerate(record["tasks"])},
        picture=draw(plot, width=_WIDTH, height=_HEIGHT, label=label),
        table=table_of(record),
        difference=max(network["difference"] for network in record["networks"]),
    )


def _lead(record: Mapping[str, Any]) -> str:
    """Return the result in a sentence."""
    best, dense = next(n for n in record["networks"] if n["name"] == record["smallest"]), record["networks"][0]
    if best is dense:
        return "No small network keeps every task within the allowed loss: the dense network is the smallest that does."
    task, worst = min(best["tasks"].items(), key=lambda item: item[1]["change"])
    change = f"{100 * worst['change']:+.1f} %".replace("-", "\N{MINUS SIGN}")
    return (
        f"With {percent(best['macs'] / dense['macs'])} of the multiply-adds and "
        f"{percent(best['parameters'] / dense['parameters'])} of the parameters, the task that changes for the worst "
        f"is {task} ({change} of its metric, on {record['split']} data)."
    )
