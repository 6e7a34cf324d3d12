"""Figures of a run in memory, for `Trainer.history`."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemtl.storage.metrics import MetricRow
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training.callbacks.callback import Callback, FitInfo


class MemoryCallback(Callback):
    """Keeps all figures of a run, those of a resumed run's folder included.

    Attributes:
        rows: the figures, in the order of the run.
    """

    def __init__(self) -> None:
        self.rows: list[MetricRow] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def on_fit_start(self, run: FitInfo) -> None:
        """Begin with the figures that the run folder keeps of a resumed run, or with none."""
        self.rows = []
        if run.folder is not None and run.resume_at is not None:
            earlier = RunFolder(run.folder).read_metrics()
            self.rows = [row for row in earlier if row.step <= run.resume_at and row.split != "test"]

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Add the figures of an epoch."""
        self.rows += [row._replace(value=float(row.value)) for row in rows]

    def on_test_end(self, rows: Sequence[MetricRow]) -> None:
        """Put the metrics on test data in the place of earlier ones."""
        self.rows = [row for row in self.rows if row.split != "test"]
        self.on_epoch_end(rows, improved=False)
