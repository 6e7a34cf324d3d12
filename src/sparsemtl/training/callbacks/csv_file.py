"""CSV file of a run's figures."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparsemtl.errors import RecordWarning
from sparsemtl.storage.disk import storage_errors
from sparsemtl.storage.metrics import METRIC_COLUMNS, MetricRow, parse_metrics
from sparsemtl.storage.text_files import replacing
from sparsemtl.training.callbacks.callback import Callback, FitInfo


class CSVCallback(Callback):
    """Writes all figures of a run to a CSV file, one row per figure.

    If the file of a resumed run is damaged, a copy is kept beside it as `<name>.damaged`, and the run continues with
    the rows that can be read: a good checkpoint is worth more than its curves.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, run: FitInfo) -> None:
        """Start a new file, or drop the rows that a resumed run logs again."""
        self._start(run.resume_at)

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Append the figures of an epoch."""
        self.append(rows)

    def on_test_end(self, rows: Sequence[MetricRow]) -> None:
        """Write the metrics on test data in place of earlier ones."""
        self._start(max((row.step for row in rows), default=0))
        self.append(rows)

    def append(self, rows: Iterable[MetricRow]) -> None:
        """Append rows in one write, and synchronise the file: the checkpoint that counts the rows is written later.

        If the disk is full, the file keeps the rows that it had.
        """
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows([*row[:-1], float(row.value)] for row in rows)
        content = lines.getvalue().encode()
        with storage_errors(self.path, len(content)), self.path.open("ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise

    def _start(self, resume_at: int | None) -> None:
        """Write the header, and the rows of training up to a step."""
        rows = self._earlier_rows() if resume_at is not None and self.path.exists() else []
        with replacing(self.path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
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
                f"{aside.name} beside it is a copy of the damaged file.",
                RecordWarning,
                stacklevel=4,
            )
        return rows
