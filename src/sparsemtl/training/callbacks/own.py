"""Callbacks that a trainer has by its options: the file of figures, TensorBoard and the progress bar."""

from __future__ import annotations

from collections.abc import Iterator

from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training.callbacks.callback import Callback
from sparsemtl.training.callbacks.csv_file import CSVCallback
from sparsemtl.training.callbacks.progress import ProgressBar
from sparsemtl.training.callbacks.tensorboard import TensorBoardCallback
from sparsemtl.training.options import TrainingOptions


def own_callbacks(folder: RunFolder | None, options: TrainingOptions) -> Iterator[Callback]:
    """Yield the callbacks for the files of the run folder, if there is one, and the progress bar."""
    if folder is not None:
        yield CSVCallback(folder.metrics)
        if options["tensorboard"]:
            yield TensorBoardCallback()
    if options["progress"]:
        yield ProgressBar()
