"""TensorBoard event files of a run's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from sparsemtl.errors import ParameterError, missing_extra
from sparsemtl.storage.metrics import MetricRow
from sparsemtl.training.callbacks.callback import Callback, FitInfo, tag_of


class TensorBoardCallback(Callback):
    """Writes figures for TensorBoard, as scalars `task/split/name`.

    Raises:
        MissingExtraError: if training starts without the package `tensorboard`.
        ParameterError: if training starts with neither `folder` nor a run folder.
    """

    def __init__(
        self,
        *,
        folder: Annotated[
            str | Path | None, Doc("Folder of the event files; `tensorboard` in the run folder by default.")
        ] = None,
    ) -> None:
        self.folder = folder
        self._writer: Any = None

    def on_fit_start(self, run: FitInfo) -> None:
        """Open the event file; figures that a resumed run logs again are hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard", "logging to TensorBoard") from None
        folder = self.folder if run.folder is None else self.folder or run.folder / "tensorboard"
        if folder is None:
            raise ParameterError("TensorBoardCallback: expected a `folder`, or a trainer with a run folder.")
        purge: Any = None if run.resume_at is None else run.resume_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def on_epoch_end(self, rows: Sequence[MetricRow], improved: bool) -> None:
        """Write the figures of an epoch at their steps."""
        for row in rows:
            self._writer.add_scalar(tag_of(row), row.value, row.step)

    def on_fit_end(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
        self._writer = None  # a trainer can be pickled after training
