"""Masks of a run, as a report reads them."""

from __future__ import annotations

from sparsemtl.errors import CheckpointError, MaskError
from sparsemtl.networks.masks import TaskMasks
from sparsemtl.storage.run_folder import RunRecord


def masks_of(run: RunRecord) -> TaskMasks | None:
    """Return the masks that the run ended with; None for a dense run.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        return TaskMasks.load(run.folder.masks) if run.folder.masks.is_file() else None
    except MaskError as error:
        raise CheckpointError(str(error)) from None
