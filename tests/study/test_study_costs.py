"""Columns of costs: means over seeds of what the runs' summaries say."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparsemtl.study.costs import SPLIT, cost_rows, cost_table, with_costs
from sparsemtl.study.results import StudyResults
from sparsemtl.study.tables import StudyTable, TableRow, primary_table, to_csv, to_markdown, to_units


def summary(macs: int, weights: int, milliseconds: float, *, failure: str = "", threads: int = 1) -> dict[str, object]:
    compacted = {"macs": macs, "encoder_macs": macs - 1000, "weights": weights, "milliseconds": milliseconds}
    uncompacted = {"macs": 20_000_000, "encoder_macs": 19_000_000, "weights": 90_000, "milliseconds": 9.0}
    network = {"tasks": ["digit", "ink"], "compacted": compacted, "uncompacted": uncompacted, "failure": failure}
    about = {"batch_size": 16, "threads": threads, "device": "cpu", "networks": [network]}
    return {"cost": {**about, "compacted": compacted, "uncompacted": uncompacted}}


RUNS = {
    ("dense", 0): summary(20_000_000, 90_000, 9.0),
    ("dense", 1): summary(20_000_000, 90_000, 8.0),
    ("lasso", 0): summary(4_000_000, 20_000, 3.0),
    ("lasso", 1): summary(6_000_000, 30_000, 5.0, failure="too strange"),
}


def results(runs: dict[tuple[str, int], dict[str, object]] = RUNS) -> StudyResults:
    rows = []
    for (method, seed), about in runs.items():
        head = {"run": f"{method}-{seed}", "method": method, "seed": seed}
        for task in ("digit", "ink"):
            score = {"split": "test", "task": task, "metric": "accuracy", "higher_is_better": True, "value": 0.5}
            rows.append({**head, **score})
        for metric, value in cost_rows(about):
            rows.append({**head, "split": SPLIT, "task": "", "metric": metric, "value": value})
    return StudyResults.of(pd.DataFrame(rows), baseline="dense", methods=["dense", "lasso"])


def rows_of(table: StudyTable) -> dict[str, TableRow]:
    return {row.label: row for row in table.rows()}


def test_cost_stands_beside_the_tasks_figures() -> None:
    table = with_costs(primary_table(results()), results())
    assert list(table.headers())[-3:] == [
        ("multiply-adds", "M per sample ↓"),
        ("weights", "k ↓"),
        ("latency", "ms"),
    ]
    dense, lasso = (rows_of(table)[label].cells[-3:] for label in ("dense", "lasso"))
    assert [cell.text for cell in dense] == ["20.0", "90.0", "8.50"]
    assert [cell.deviation for cell in dense] == ["", "", "0.71"]
    assert [cell.text for cell in lasso] == ["5.0", "25.0", "4.00"]
    assert [cell.deviation for cell in lasso] == ["1.4", "7.1", "1.41"]


def test_the_lowest_cost_is_marked_but_no_latency() -> None:
    cells = rows_of(with_costs(primary_table(results()), results()))["lasso"].cells[-3:]
    assert [cell.best for cell in cells] == [True, True, False]


def test_the_table_of_costs_shows_the_uncompacted_networks_as_well() -> None:
    table = cost_table(results())
    assert table is not None
    numbers = table.figures.mean.loc["lasso"]
    assert numbers["networks"] == 1
    assert numbers["multiply-adds"] == pytest.approx(5.0)
    assert numbers["of the encoder"] == pytest.approx(4.999)
    assert numbers["uncompacted"] == pytest.approx(20.0)
    assert numbers["uncompacted weights"] == pytest.approx(90.0)
    assert numbers["uncompacted latency"] == pytest.approx(9.0)


def test_the_note_says_how_latency_was_measured_and_what_was_not_compacted() -> None:
    note = with_costs(primary_table(results()), results()).note
    assert "one batch of 16 samples on 1 thread, measured at the end of each run" in note
    assert "counted as they are: 1 " in note
    assert "counted as they are" not in cost_note_of({key: RUNS[key] for key in [("dense", 0), ("lasso", 0)]})
    assert "on 1 to 2 threads" in cost_note_of({("a", 0): RUNS["dense", 0], ("b", 0): summary(1, 1, 1.0, threads=2)})


def cost_note_of(runs: dict[tuple[str, int], dict[str, object]]) -> str:
    table = cost_table(results(runs))
    assert table is not None
    return table.note


def test_runs_that_were_not_measured_leave_gaps_and_studies_of_such_runs_no_columns() -> None:
    partly = results({**RUNS, ("lasso", 1): {"cost": None}})
    cell = rows_of(with_costs(primary_table(partly), partly))["lasso"].cells[-1]
    assert cell.note == "n=1"
    none = results({run: {} for run in RUNS})
    assert cost_table(none) is None
    assert "weights" not in with_costs(primary_table(none), none).higher


def test_markdown_and_csv_have_the_costs() -> None:
    table = with_costs(primary_table(results()), results())
    assert "multiply-adds M per sample ↓" in to_markdown(table)
    records = [line.split(",") for line in to_csv([table]).splitlines()]
    assert any("multiply-adds" in record and "M per sample" in record for record in records)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 9_999.0], (1.0, "")),
        ([12_000.0], (1e-3, "k")),
        ([1e7, 1.0], (1e-6, "M")),
        ([math.nan, 2e10], (1e-9, "G")),
    ],
)
def test_units_suit_the_largest_value(values: list[float], expected: tuple[float, str]) -> None:
    assert to_units(values) == expected
