"""Where a run's figures go: a CSV file always, TensorBoard where asked."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from sparsemtl.errors import RecordWarning, missing_extra
from sparsemtl.storage.disk import storage_errors
from sparsemtl.storage.files import replacing
from sparsemtl.storage.metrics import METRIC_COLUMNS, MetricRow, parse_metrics
from sparsemtl.storage.run_folder import RunFolder


class Logger(Protocol):
    """Takes rows in."""

    def log(self, rows: Iterable[MetricRow]) -> None:
        """Write rows."""

    def close(self) -> None:
        """Finish."""


class CSVLogger:
    """Appends rows to a CSV file, whole rows at a time.

    Where the file is damaged, a copy is kept beside it as `<name>.damaged`, and the run goes on with the rows that can
    be read: a good checkpoint is worth more than its curves.

    Args:
        path: the file.
        resume_at: keep rows up to this step and drop later ones, and those of a test, which the resumed run will write
            again.
    """

    def __init__(self, path: Path, *, resume_at: int | None = None) -> None:
        self.path = path
        rows = self._earlier_rows() if resume_at is not None and path.exists() else []
        with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(METRIC_COLUMNS)
            writer.writerows(row for row in rows if row.step <= (resume_at or 0) and row.split != "test")

    def _earlier_rows(self) -> list[MetricRow]:
        content = self.path.read_bytes()
        rows, damaged = parse_metrics(content)
        if damaged:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            with replacing(aside, len(content)) as copy:
                copy.write_bytes(content)
            warnings.warn(
                f"{self.path} is damaged: {damaged} of its lines cannot be read, the other {len(rows)} are kept. "
                f"{aside.name} beside it is a copy of what it was.",
                RecordWarning,
                stacklevel=4,
            )
        return rows

    def log(self, rows: Iterable[MetricRow]) -> None:
        """Append rows in one write."""
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows([*row[:-1], float(row.value)] for row in rows)
        content = lines.getvalue()
        with storage_errors(self.path, len(content)), self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(content)

    def close(self) -> None:
        """Nothing is open."""


def loggers_of(folder: RunFolder | None, *, tensorboard: bool, resume_at: int | None) -> list[Logger]:
    """The loggers of a run: none without a folder.

    Args:
        folder: the run folder.
        tensorboard: log for TensorBoard as well.
        resume_at: drop what was logged after this step.
    """
    if folder is None:
        return []
    loggers: list[Logger] = [CSVLogger(folder.metrics, resume_at=resume_at)]
    return [*loggers, TensorBoardLogger(folder.tensorboard, resume_at=resume_at)] if tensorboard else loggers


class TensorBoardLogger:
    """Writes scalars for TensorBoard, under task/split/metric.

    Args:
        folder: where the event files go.
        resume_at: drop what was logged after this step.
    """

    def __init__(self, folder: Path, *, resume_at: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard", "logging to TensorBoard") from None
        purge: Any = None if resume_at is None else resume_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, rows: Iterable[MetricRow]) -> None:
        """Write rows at their steps."""
        for row in rows:
            tag = "/".join(part for part in (row.task, row.split, row.name) if part)
            self._writer.add_scalar(tag, row.value, row.step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()
