"""Rows of a study's `results.csv`, from the summaries of its finished runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsemtl.storage.study_folder import StudyFolder
from sparsemtl.study.costs import SPLIT, cost_rows
from sparsemtl.study.study_runs import StudyRun, value_text


def results_text(runs: Sequence[StudyRun], grid: Sequence[str], folder: StudyFolder) -> str:
    """Return the content of `results.csv`: a row per finished run, split, task and metric.

    Args:
        runs: the runs, in order.
        grid: keys of the grid, which have a column each.
        folder: the study folder.
    """
    columns = ["run", "method", "seed", *grid, "split", "task", "metric", "higher_is_better", "value"]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    for one in runs:
        if (run_folder := folder.run(one.name)).finished:
            writer.writerows(_rows(grid, one, run_folder.read_summary()))
    return file.getvalue()


def _rows(grid: Sequence[str], one: StudyRun, summary: Mapping[str, Any]) -> Iterator[list[Any]]:
    head = [one.name, one.method, one.seed, *(value_text(one.values.get(key, "")) for key in grid)]
    for task, entry in summary["tasks"].items():
        for split in ("validation", "test"):
            for metric, value in entry[split].items():
                yield [*head, split, task, metric, entry["directions"][metric], "" if value is None else value]
    yield [*head, "run", "", "seconds", False, summary["seconds"]]
    for metric, value in cost_rows(summary):
        yield [*head, SPLIT, "", metric, False, value]
