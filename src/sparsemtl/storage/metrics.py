"""Rows of `metrics.csv`: the one schema in which the figures of a run are logged, and the one reader."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sparsemtl.errors import CheckpointError, missing_extra

if TYPE_CHECKING:
    from sparsemtl.storage.history import History

METRIC_COLUMNS = ("epoch", "step", "split", "task", "metric", "value")
"""Header of the file; one column per field of `MetricRow`, in the same order."""


class MetricRow(NamedTuple):
    """One figure of a run.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps until then.
        split: train, validation, test, sharing, balancing or run.
        task: name of the task, "" for a figure of the whole run.
        name: name of the figure, such as `accuracy` or `seconds`.
        value: the figure; NaN if it is undefined.
    """

    epoch: int
    step: int
    split: str
    task: str
    name: str
    value: float


def metrics_frame(rows: Iterable[MetricRow]) -> History:
    """Return figures as a frame with the columns `METRIC_COLUMNS`.

    Raises:
        MissingExtraError: if pandas is not installed.
    """
    try:
        from sparsemtl.storage.history import History
    except ImportError:
        raise missing_extra("pandas", "report", "The history of a run") from None
    return History(list(rows), columns=list(METRIC_COLUMNS))


def read_metrics(path: Path) -> list[MetricRow]:
    """Read a file of metrics, without a last line that a kill cut short and without lines that are no rows.

    Raises:
        CheckpointError: if the file is missing, or its header is another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    found = content.split(b"\n", 1)[0].decode("utf-8", errors="replace").strip().split(",")
    if tuple(found) != METRIC_COLUMNS:
        raise CheckpointError(f"{path}: expected the columns {', '.join(METRIC_COLUMNS)}, found {', '.join(found)}.")
    return parse_metrics(content)[0]


def parse_metrics(content: bytes) -> tuple[list[MetricRow], int]:
    """Return the rows of a file of metrics, and the number of complete lines that are none."""
    text = content.decode("utf-8", errors="replace").replace("\0", "\ufffd")
    complete = text[: text.rfind("\n") + 1]
    rows: list[MetricRow] = []
    damaged = 0
    lines = csv.reader(io.StringIO(complete, newline=""))
    for number, line in enumerate(_readable(lines)):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number or tuple(line) != METRIC_COLUMNS:
            damaged += 1
    return rows, damaged


def _readable(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield the lines of a CSV file; a line that `csv` cannot read is empty."""
    while True:
        try:
            yield next(lines)
        except StopIteration:
            return
        except csv.Error:
            yield []


def _row(line: list[str]) -> MetricRow | None:
    if len(line) != len(METRIC_COLUMNS) or any("\ufffd" in text for text in line):
        return None
    epoch, step, split, task, name, value = line
    try:
        return MetricRow(int(epoch), int(step), split, task, name, float(value))
    except ValueError:
        return None
