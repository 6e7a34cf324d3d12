"""Checkpoints of a run: its position and state, saved and resumed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sparsemtl.errors import CheckpointError, ReproducibilityWarning
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.processes import ALONE, Processes
from sparsemtl.training.checkpoints.checkpoint import Randomness, Stateful, check_progress, restore, snapshot
from sparsemtl.training.checkpoints.structure import check_state, reading
from sparsemtl.training.processes.machine import load_kernels, machine, machine_changes
from sparsemtl.training.settings import RunSettings


def refuse_earlier_run(folder: RunFolder) -> None:
    """Raise if a folder holds a run, which a new one would replace.

    Raises:
        CheckpointError: naming the three ways to go on.
    """
    if folder.last.exists() or folder.ended:
        raise CheckpointError(
            f"{folder.path} holds a {'finished run' if folder.finished else 'run that stopped'}. Go on with it by "
            "`fit(..., resume=True)`, train into another `folder`, or replace it by `fit(..., overwrite=True)`."
        )


@dataclass
class Position:
    """Position of a run.

    Attributes:
        epoch: finished epochs.
        batch: batches done in the epoch under way.
        step: optimizer steps in all.
        seconds: time spent in training steps.
        logged_until: step up to which figures are logged.
        scales: note on losses of unlike scale, "" if there is none.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    logged_until: int = 0
    scales: str = ""


@dataclass
class Checkpoints:
    """Saves checkpoints of a run in its folder, and resumes from the last one.

    Args:
        folder: the run folder; nothing is saved if None.
        model: the model.
        parts: everything else that has a state; an entry may be replaced while the run goes on.
        randomness: state of the generators, also among the parts.
        settings: settings of the run; it resumes under the same settings only.
        device: device of the model.
        processes: processes that train together; the first reads the checkpoint for all.
    """

    folder: RunFolder | None
    model: MultiTaskModel
    parts: dict[str, Stateful]
    randomness: Randomness
    settings: RunSettings
    device: torch.device
    processes: Processes = ALONE
    start: dict[str, Any] = field(default_factory=dict)
    """State of the generators at the beginning of the epoch under way."""

    def save(self, position: Position) -> None:
        """Write a checkpoint."""
        if self.folder is None:
            return
        progress = {
            **asdict(position),
            "start": dict(self.start) if position.batch else {},
            "threads": torch.get_num_threads(),
            "machine": machine(self.device),
        }
        state = snapshot(self.model, self.parts, progress)
        self.folder.save(self.folder.last, {**state, "settings": self.settings.values})

    def resume(self, own_threads: int | None) -> tuple[Position, int | None]:
        """Restore the last checkpoint.

        Args:
            own_threads: number of threads of this run; None takes that of the checkpoint.

        Returns:
            Position of the run, and its number of threads.

        Raises:
            CheckpointError: if there is none, or it is damaged or of another run.
        """
        where, state = self.processes.from_first(self._read)
        progress = dict(restore(state, self.model, self.parts, where, settings=self.settings))
        check_progress(progress, where)
        self.start = progress.pop("start")
        if progress["batch"]:
            self._check_start(where)
        threads, there = progress.pop("threads", None), progress.pop("machine", {})
        if own_threads is None and threads is not None:
            torch.set_num_threads(threads)
        self._warn_of_changes(threads, there)
        return Position(**progress), threads if own_threads is None else own_threads

    def _read(self) -> tuple[str, Any]:
        """Return the path of the last checkpoint, and its content."""
        if self.folder is None or not self.folder.last.exists():
            where = self.folder.path if self.folder else "a trainer without a folder"
            raise CheckpointError(f"{where} has no checkpoint to resume from.")
        return str(self.folder.last), self.folder.load(self.folder.last)

    def _check_start(self, where: str) -> None:
        """Raise at once if the generators cannot be restored to the beginning of the epoch."""
        now = self.randomness.state_dict()
        check_state(self.start, now, f"{where}: progress.start")
        with reading(where, "the state in which its epoch began"):
            self.randomness.load_state_dict(self.start)
        self.randomness.load_state_dict(now)

    def _warn_of_changes(self, threads: int | None, there: Mapping[str, str]) -> None:
        """Warn if the run resumes with another number of threads, or on another machine, than it started."""
        load_kernels(there)
        changed = machine_changes(there, machine(self.device))
        if threads is not None and threads != torch.get_num_threads():
            changed.append(f"threads {threads} there and {torch.get_num_threads()} here")
        if changed:
            warnings.warn(
                f"the run goes on otherwise than it began: {'; '.join(changed)}. "
                "Its figures may differ in their last bits from those of an uninterrupted run.",
                ReproducibilityWarning,
                stacklevel=5,
            )
