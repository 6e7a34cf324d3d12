"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from typing_extensions import Doc

from sparsemtl.errors import missing_extra
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.training.callbacks.callback import Callback, FitInfo, tag_of


class WandbCallback(Callback):
    """Logs a run to Weights & Biases, figures as `task/split/name`.

    The run ends there when it was tested. A run that resumes is the same run there, if its folder is the same.

    Raises:
        MissingExtraError: if training starts without the package `wandb`.
    """

    def __init__(
        self,
        *,
        project: Annotated[
            str | None, Doc("Project of the run; that of the environment variable WANDB_PROJECT by default.")
        ] = None,
        options: Annotated[
            Mapping[str, Any] | None, Doc("Other arguments of `wandb.init`, such as `entity`, `group` and `tags`.")
        ] = None,
    ) -> None:
        self.project = project
        self.options = options
        self._run: Any = None

    def on_fit_start(self, run: FitInfo) -> None:
        """Start or resume the run."""
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "wandb", "logging to Weights & Biases") from None
        given: dict[str, Any] = {
            "project": self.project,
            "name": run.name,
            "config": dict(run.config),
            "dir": None if run.folder is None else str(run.folder),
            "resume": None if run.resume_at is None else "auto",
            "reinit": "finish_previous",  # several runs may train in one process
        }
        self._run = wandb.init(**{**given, **(self.options or {})})

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Log the figures of an epoch at its last step."""
        self._run.log({tag_of(row): row.value for row in rows}, step=rows[0].step)

    def on_test_end(self, rows: Sequence[MetricRow]) -> None:
        """Put the metrics on test data into the summary of the run."""
        self._run.summary.update({tag_of(row): row.value for row in rows})

    def on_run_end(self) -> None:
        """Finish the run."""
        self._run.finish()
        self._run = None  # a trainer can be pickled after the test
