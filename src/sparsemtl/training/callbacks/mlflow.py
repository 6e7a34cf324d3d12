"""MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from typing_extensions import Doc

from sparsemtl.errors import missing_extra
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.training.callbacks.callback import Callback, FitInfo, tag_of

_FOLDER = "sparsemtl.folder"
"""Tag by which the run of a folder is found again when it resumes."""


class MLflowCallback(Callback):
    """Logs a run to MLflow, figures as `task/split/name`; the configuration becomes its parameters.

    The run ends there when it was tested. A run that resumes is the same run there, if its folder is the same.

    Raises:
        MissingExtraError: if training starts without the package `mlflow`.
    """

    def __init__(
        self,
        *,
        experiment: Annotated[str | None, Doc("Experiment of the run; the active one by default.")] = None,
        tracking_uri: Annotated[
            str | None,
            Doc("Address of the server; that of the environment variable MLFLOW_TRACKING_URI by default."),
        ] = None,
    ) -> None:
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self._mlflow: Any = None

    def on_fit_start(self, run: FitInfo) -> None:
        """Start or resume the run."""
        try:
            import mlflow
        except ImportError:
            raise missing_extra("mlflow", "mlflow", "logging to MLflow") from None
        self._mlflow = mlflow
        if self.tracking_uri is not None:
            mlflow.set_tracking_uri(self.tracking_uri)
        if self.experiment is not None:
            mlflow.set_experiment(self.experiment)
        mlflow.end_run()  # that of an earlier run in this process, which was not tested
        folder = "" if run.folder is None else str(run.folder.resolve())
        if run.resume_at is not None and (found := self._run_of(folder)) is not None:
            mlflow.start_run(run_id=found)
        else:
            mlflow.start_run(run_name=run.name, tags={_FOLDER: folder})
            mlflow.log_params(dict(_flat(run.config)))

    def _run_of(self, folder: str) -> str | None:
        """Return the identifier of the newest run that was logged from a folder; None if there is none."""
        quoted = folder.replace("'", "\\'")
        found = self._mlflow.search_runs(
            filter_string=f"tags.`{_FOLDER}` = '{quoted}'", max_results=1, output_format="list"
        )
        return str(found[0].info.run_id) if found else None

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Log the figures of an epoch at its last step."""
        self._log(rows)

    def on_test_end(self, rows: Sequence[MetricRow]) -> None:
        """Log the metrics on test data."""
        self._log(rows)

    def _log(self, rows: Sequence[MetricRow]) -> None:
        step = max(row.step for row in rows)
        self._mlflow.log_metrics({_allowed(tag_of(row)): row.value for row in rows}, step=step)

    def on_run_end(self) -> None:
        """End the run."""
        self._mlflow.end_run()
        self._mlflow = None  # a trainer can be pickled after the test


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, with keys joined by dots."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _allowed(name: str) -> str:
    """Return the name with an underscore for every character that MLflow refuses in names of metrics."""
    return re.sub(r"[^\w\-./ ]", "_", name)
