"""Result of a shrink: small networks with their cost and quality, as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.training.evaluation.metric_facts import metric_facts
from sparsemtl.training.evaluation.results import Results
from sparsemtl.training.shrinking.budget import Budget
from sparsemtl.views.tables import Table, Value, Written

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ShrunkNetwork:
    """Small network of all tasks.

    Attributes:
        name: `dense`, or the budget, such as "macs 0.3".
        budget: number of the budget; of `max_drop` the fraction of the multiply-adds; None for the dense network.
        network: plain module in eval mode that maps a batch to task -> outputs.
        form: `one network` for all tasks, a `tree`, or `separate` networks, whichever needs the fewest multiply-adds.
        model: the pruned model, to train on or to compact for one task.
        networks: the networks of its tasks.
        macs: multiply-adds of one sample, all tasks together.
        parameters: number of parameters.
        difference: largest difference of the outputs from the pruned model's in single precision, as a fraction of
            their spread; compaction has raised an error if it is more than rounding.
        validation: task -> metrics on the data that chose the epochs.
        test: the same on data that only report; None without.
        milliseconds: median time of one forward pass of the example batch, in torch with its present number of threads.
    """

    name: str
    budget: float | None
    network: nn.Module = field(repr=False)
    form: str
    model: MultiTaskModel = field(repr=False)
    networks: TaskNetworks = field(repr=False)
    macs: int
    parameters: int
    difference: float
    validation: Results
    test: Results | None
    milliseconds: float = 0.0


@dataclass(frozen=True)
class ShrinkResult:
    """Networks of a shrink. It prints itself as a table.

    Attributes:
        dense: the network before, compacted without a loss.
        points: small networks, from the largest budget to the smallest.
        budget: the budgets.
    """

    dense: ShrunkNetwork
    points: tuple[ShrunkNetwork, ...]
    budget: Budget

    @property
    def smallest(self) -> ShrunkNetwork:
        """The network of the smallest budget; of `max_drop` the smallest that holds it, or the dense one."""
        return next((point for point in reversed(self.points) if self.holds(point)), self.dense)

    @property
    def network(self) -> nn.Module:
        """Module of the smallest network, which maps a batch to task -> outputs."""
        return self.smallest.network

    def holds(self, point: ShrunkNetwork) -> bool:
        """Return whether a network keeps to `max_drop` on the validation data; True for other budgets."""
        change = self.changes(point, "validation")
        return all(-change[task] <= drop for task, drop in self.budget.max_drop.items())

    def changes(self, point: ShrunkNetwork, split: str | None = None) -> dict[str, float]:
        """Return task -> change of its primary metric as a fraction of the dense network's; positive is better.

        Args:
            point: a network.
            split: `validation` or `test`; by default `test` if there is one.
        """
        own, before = (self._results(each, split) for each in (point, self.dense))
        found = {}
        for task, about in self.dense.model.tasks.items():
            facts = metric_facts(about)
            value, base = own[task][facts.primary], before[task][facts.primary]
            sign = 1 if facts.directions[facts.primary] else -1
            found[task] = sign * (value - base) / max(abs(base), 1e-12)
        return found

    def _results(self, point: ShrunkNetwork, split: str | None) -> Results:
        return point.validation if split == "validation" or point.test is None else point.test

    def timed(self, milliseconds: Mapping[str, float]) -> ShrinkResult:
        """Return the same with times.

        Args:
            milliseconds: name of every network -> its time.
        """
        points = tuple(replace(point, milliseconds=milliseconds[point.name]) for point in self.points)
        return replace(self, dense=replace(self.dense, milliseconds=milliseconds["dense"]), points=points)

    def record(self) -> dict[str, Any]:
        """Return figures as plain values, for JSON."""
        tasks = self.dense.model.tasks
        return {
            "split": "validation" if self.dense.test is None else "test",
            "tasks": {name: _facts(metric_facts(task)) for name, task in tasks.items()},
            "budget": {"kind": self.budget.kind, "max_drop": dict(self.budget.max_drop)},
            "smallest": self.smallest.name,
            "networks": [self._record(point) for point in (self.dense, *self.points)],
        }

    def _record(self, point: ShrunkNetwork) -> dict[str, Any]:
        results, changes = self._results(point, None), self.changes(point)
        figures = ("name", "form", "macs", "parameters", "milliseconds", "difference")
        return {
            **{name: getattr(point, name) for name in figures},
            "holds": self.holds(point),
            "tasks": {
                task: {"value": results[task][metric_facts(about).primary], "change": changes[task]}
                for task, about in self.dense.model.tasks.items()
            },
        }

    def table(self) -> Table:
        """Return the networks with cost and quality, as a table."""
        return table_of(self.record())

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return the same for a report."""
        table = self.table()
        rows = [tuple(cell.text if isinstance(cell, Written) else cell for cell in row) for row in table.rows]
        return (SummaryTable("Networks by budget", table.head, rows, " ".join(table.notes)),)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        """Return the networks as a table, for notebooks."""
        return self.table().html()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the change of every task against the multiply-adds left, and return the axes.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        from sparsemtl.views.fronts import draw_front

        return draw_front(self.record(), ax)


def table_of(record: Mapping[str, Any]) -> Table:
    """Return the table of a record of `ShrinkResult.record`."""
    tasks = record["tasks"]
    head = ["network", "multiply-adds", "left", "parameters", "ms", *(f"{t}: {m['metric']}" for t, m in tasks.items())]
    whole = record["networks"][0]["macs"]
    rows: list[list[Value]] = []
    for point in record["networks"]:
        cost = [Written(point["macs"], f"{point['macs']:,}"), Written(point["macs"], f"{point['macs'] / whole:.1%}")]
        size = Written(point["parameters"], f"{point['parameters']:,}")
        time = Written(point["milliseconds"], f"{point['milliseconds']:.2f}")
        rows.append([point["name"], *cost, size, time, *(_quality(point["tasks"][task]) for task in tasks)])
    which = "Smallest network within the allowed loss" if record["budget"]["max_drop"] else "Smallest network"
    note = (
        f"{which}: {record['smallest']}. Figures of {record['split']} data; change against dense, positive is better."
    )
    return Table(head, rows, notes=[note])


def _quality(found: Mapping[str, float]) -> Written:
    change = found["change"]
    return Written(found["value"], f"{found['value']:.4f} ({change:+.1%})" if change else f"{found['value']:.4f}")


def _facts(facts: Any) -> dict[str, Any]:
    return {"metric": facts.primary, "higher_is_better": facts.directions[facts.primary]}
