"""Where a run's figures go: a CSV file always, TensorBoard where asked."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sparsemtl.errors import RecordWarning, missing_extra
from sparsemtl.storage.disk import storage_errors
from sparsemtl.storage.files import replacing
from sparsemtl.storage.run_folder import RunFolder

COLUMNS = ("epoch", "step", "split", "task", "metric", "value")


class Row(NamedTuple):
    """One figure. `split` is train, validation, test, sharing, balancing or run; `task` is empty for the whole run."""

    epoch: int
    step: int
    split: str
    task: str
    metric: str
    value: float


class Logger(Protocol):
    """Takes rows in."""

    def log(self, rows: Iterable[Row]) -> None:
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
            writer.writerow(COLUMNS)
            writer.writerows(row for row in rows if row.step <= (resume_at or 0) and row.split != "test")

    def _earlier_rows(self) -> list[Row]:
        content = self.path.read_bytes()
        rows, damaged = parse_rows(content)
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

    def log(self, rows: Iterable[Row]) -> None:
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


def read_rows(path: Path) -> list[Row]:
    """Read a metrics file; a last line that a kill cut short, and lines that are no rows, are left out."""
    return parse_rows(path.read_bytes())[0]


def parse_rows(content: bytes) -> tuple[list[Row], int]:
    """Return the rows of a metrics file, and the number of whole lines that are none."""
    text = content.decode("utf-8", errors="replace").replace("\0", "\ufffd")
    whole = text[: text.rfind("\n") + 1]
    rows: list[Row] = []
    damaged = 0
    lines = csv.reader(io.StringIO(whole, newline=""))
    for number, line in enumerate(_readable(lines)):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number or tuple(line) != COLUMNS:
            damaged += 1
    return rows, damaged


def _readable(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    """The lines of a CSV file; one that is none is empty."""
    while True:
        try:
            yield next(lines)
        except StopIteration:
            return
        except csv.Error:
            yield []


def _row(line: list[str]) -> Row | None:
    if len(line) != len(COLUMNS) or any("\ufffd" in text for text in line):
        return None
    epoch, step, split, task, metric, value = line
    try:
        return Row(int(epoch), int(step), split, task, metric, float(value))
    except ValueError:
        return None


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

    def log(self, rows: Iterable[Row]) -> None:
        """Write rows at their steps."""
        for row in rows:
            tag = "/".join(part for part in (row.task, row.split, row.metric) if part)
            self._writer.add_scalar(tag, row.value, row.step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()
