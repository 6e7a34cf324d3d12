"""Lottery tickets for a loop of one's own: the masks of each task's best pruning iteration."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from sparsemtl.networks.masks import TaskMasks
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.randomness import fork_rng
from sparsemtl.sharing import LotterySharing
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training.trainer import Trainer


def lottery_masks(
    model: MultiTaskModel,
    train: Loaders,
    validation: Loaders,
    *,
    sharing: LotterySharing | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> TaskMasks:
    """Return the masks that iterative magnitude pruning finds for each task (Sun et al., AAAI 2020).

    Tasks train copies of the model in a run of their own, up to the masks and one epoch under them. Train the model
    itself, whose weights are theta_0, under the masks.

    Args:
        model: the model; it is not changed.
        train: training data, as for `Trainer.fit`.
        validation: validation data, by which the iteration of each task is chosen.
        sharing: the schedule; by default that of `LotterySharing()`.
        folder: folder of the run. If it holds one that stopped, it goes on; if it holds one that ended, its masks are
            read. None writes nothing.
        options: options of `Trainer`, such as `optimizer`, `seed` and `progress` (by default False).

    Raises:
        CheckpointError: if the folder holds another run.
        ParameterError: if the schedule makes no progress.

    Examples:
        >>> masks = lottery_masks(model, train, validation, folder="tickets")   # doctest: +SKIP
        >>> with masks.applied(model, "digit"):                                 # doctest: +SKIP
        ...     loss = tasks["digit"].loss(model(x)["digit"], y)
    """
    method = LotterySharing() if sharing is None else sharing
    with fork_rng():
        trainer = Trainer(
            deepcopy(model),
            sharing=method,
            epochs=method.first_selectable() + 1,
            folder=folder,
            **{"progress": False, **options},
        )
        trainer.fit(train, validation, resume=folder is not None and RunFolder(folder).last.exists())
    masks = trainer.masks
    assert masks is not None
    return masks
