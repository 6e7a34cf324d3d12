"""Schedules of sparsity: by epoch for masks chosen before an epoch, by step for pruning within epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import cast

from sparsemtl.criteria.select import Keep, Scope, default_scope
from sparsemtl.errors import ParameterError
from sparsemtl.tasks.batches import Loaders, per_task
from sparsemtl.tasks.shards import sharded


def cubic(progress: float) -> float:
    """Return the fraction of the final sparsity that is due: 1 - (1 - progress)^3 (Zhu & Gupta 2017).

    Args:
        progress: in [0, 1], from the first step to the last.
    """
    return 1 - (1 - progress) ** 3


def check_reach_at(warmup: int, reach_at: int) -> None:
    """Raise unless a schedule ends after its warm-up.

    Raises:
        ParameterError: naming both epochs.
    """
    if reach_at <= warmup:
        raise ParameterError(f"`reach_at` must come after the warm-up of {warmup} epochs, got {reach_at}.")


@dataclass(frozen=True)
class KeepSchedule:
    """Fraction of the weights that each task keeps, by epoch.

    With a target the sparsity rises as `cubic` between `warmup` and `reach_at`; otherwise `keep` is constant.

    Args:
        keep: fraction kept, in (0, 1], or task -> its fraction.
        warmup: dense epochs at the beginning.
        target_sparsity: fraction dropped at the end, in [0, 1), in place of `keep`.
        reach_at: epochs by which the target is reached.

    Raises:
        ParameterError: if only one of `target_sparsity` and `reach_at` is given, or `reach_at` lies in the warm-up.
    """

    keep: Keep
    warmup: int = 0
    target_sparsity: float | None = None
    reach_at: int | None = None

    def __post_init__(self) -> None:
        if (self.target_sparsity is None) != (self.reach_at is None):
            raise ParameterError("`target_sparsity` and `reach_at` go together: how sparse, and by which epoch.")
        if self.reach_at is not None:
            check_reach_at(self.warmup, self.reach_at)

    def keep_at(self, epoch: int) -> Keep:
        """Return the fraction to keep in masks chosen before an epoch (counted from 0)."""
        if self.target_sparsity is None or self.reach_at is None:
            return self.keep
        progress = min(max(epoch - self.warmup, 0) / (self.reach_at - self.warmup), 1.0)
        return 1 - self.target_sparsity * cubic(progress)

    def scope(self, asked: Scope | None) -> Scope | None:
        """Return how weights are ranked: as asked for, or by the final fraction; None if tasks differ in it."""
        if asked is not None or self.target_sparsity is None:
            return asked
        return default_scope(1 - self.target_sparsity)

    def falls_at(self, epoch: int) -> bool:
        """Return True if tasks keep less from this epoch on than before."""
        return self.reach_at is not None and self.warmup < epoch <= self.reach_at

    def is_reached(self, epoch: int) -> bool:
        """Return True after the warm-up; with a target, once it is reached."""
        return epoch >= (self.warmup if self.reach_at is None else self.reach_at)


class EpochClock:
    """Position of training in epochs, counted by steps or by batches.

    Their number per epoch is known from the loader or from the epoch before.

    Attributes:
        epoch: epoch under way, counted from 0.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._steps = 0
        self._steps_in_epoch = 0

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Note the epoch (counted from 0) that begins, and its number of steps."""
        if epoch > 0 and self._steps:
            self._steps_in_epoch = self._steps
        elif not per_task(loaders) and isinstance(loaders, Sized):
            self._steps_in_epoch = len(cast("Sized", sharded(loaders)))
        self.epoch, self._steps = epoch, 0

    def step(self, count: int = 1) -> None:
        """Count steps."""
        self._steps += count

    @property
    def is_known(self) -> bool:
        """True if the number of steps per epoch is known."""
        return self._steps_in_epoch > 0

    @property
    def position(self) -> float:
        """Epochs since the beginning; the end of the epoch under way where its number of steps is not known."""
        return self.epoch + (min(self._steps / self._steps_in_epoch, 1.0) if self.is_known else 1.0)

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs."""
        return {"epoch": self.epoch, "steps": self._steps, "steps_in_epoch": self._steps_in_epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore a state of `state_dict`."""
        self.epoch, self._steps, self._steps_in_epoch = (
            int(state[key]) for key in ("epoch", "steps", "steps_in_epoch")
        )


class StepRamp:
    """Progress of training in steps, from the beginning of epoch `warmup` to the end of epoch `reach_at` - 1.

    Args:
        warmup: epochs before the ramp begins.
        reach_at: epochs by which it ends; None: it stays at its beginning.
    """

    def __init__(self, warmup: int, reach_at: int | None) -> None:
        self.warmup = warmup
        self.reach_at = reach_at
        self._clock = EpochClock()

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Note the epoch (counted from 0) that begins, and its number of steps."""
        self._clock.begin_epoch(epoch, loaders)

    def step(self) -> None:
        """Count a step."""
        self._clock.step()

    @property
    def begun(self) -> bool:
        """True from epoch `warmup` on."""
        return self._clock.epoch >= self.warmup

    @property
    def progress(self) -> float:
        """Progress in [0, 1]."""
        if self.reach_at is None:
            return 0.0
        return min(max(self._clock.position - self.warmup, 0.0) / (self.reach_at - self.warmup), 1.0)

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs."""
        return self._clock.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore a state of `state_dict`."""
        self._clock.load_state_dict(state)
