"""Candidates that `auto_share` trains side by side, each in steps and in a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from pathlib import Path

from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.batches import Loaders
from sparsemtl.training.choosing.choice import signed_value
from sparsemtl.training.evaluation.trained import Trained
from sparsemtl.training.trainer import Trainer

Candidate = Callable[[Path], Trainer]
"""Function of a run folder that returns a new trainer which writes there."""


def slug(name: str) -> str:
    """Return the name of a candidate's folder."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "-" for letter in name)


class CandidateTraining:
    """Training of one candidate, in steps.

    Args:
        make: returns its trainer.
        folder: its run folder.

    Attributes:
        trainer: the latest trainer; each step has a new one, which resumes the last.
        epochs: number of epochs of the whole training.
    """

    def __init__(self, make: Candidate, folder: Path) -> None:
        self._make = make
        self._folder = folder
        self.trainer = make(folder)
        self.epochs = self.trainer.epochs

    def train(self, share: float, train: Loaders, stop: Loaders) -> None:
        """Train up to a share of the epochs, or until an epoch can be selected."""
        until = max(whole_epochs(share, self.epochs), self.trainer.sharing.first_selectable() + 1)
        self.trainer = self._make(self._folder)
        self.trainer.epochs = min(max(until, self.trainer.options["choose_after"] + 1), self.epochs)
        self.trainer.fit(train, stop, resume=RunFolder(self._folder).last.exists())

    @property
    def trained_epochs(self) -> int:
        """Number of epochs so far."""
        return self.trainer.position.epoch

    @property
    def trained(self) -> Trained:
        """Model and networks of the selected epoch."""
        return Trained(self.trainer.model, self.trainer.networks, self.trainer.model)

    def value(self, task: str) -> float:
        """Return the primary metric on the rows that stop the training, larger is better; -inf where undefined."""
        return signed_value(self.trainer.model, task, self.trainer.validation[task])


def whole_epochs(share: float, epochs: int) -> int:
    """Return a share of the epochs, rounded down, so that few epochs do not cost more; at least one."""
    return max(floor(share * epochs + 1e-9), 1)
