"""Callback of the trainer that writes the report of its run."""

from __future__ import annotations

import warnings
from pathlib import Path

from sparsemtl.errors import MissingExtraError, ParameterError, RecordWarning
from sparsemtl.report import write_report
from sparsemtl.training.callbacks import Callback, FitInfo


class ReportCallback(Callback):
    """Writes `report.html` into the run folder once the run was tested.

    Without the packages that reports need, it warns and writes nothing: a run does not fail for a report.

    Raises:
        ParameterError: if training starts without a run folder.

    Examples:
        >>> trainer = sm.Trainer(model, folder="runs/demo", callbacks=[ReportCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._folder = Path()

    def on_fit_start(self, run: FitInfo) -> None:
        """Keep the run folder."""
        if run.folder is None:
            raise ParameterError("ReportCallback: expected a trainer with a run folder, such as `folder='runs/demo'`.")
        self._folder = run.folder

    def on_run_end(self) -> None:
        """Write the report."""
        try:
            write_report(self._folder)
        except MissingExtraError as error:
            warnings.warn(f"no report was written: {error}", RecordWarning, stacklevel=2)
