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


@dataclass(frozen=True)
class Ramp:
    """Epochs in which a sparsity rises to its target, after dense ones.

    Args:
        warmup: dense epochs at the beginning.
        reach_at: epochs by which the target is reached; None: at once, at the end of the warm-up.

    Raises:
        ParameterError: if `reach_at` lies in the warm-up.
    """

    warmup: int = 0
    reach_at: int | None = None

    def __post_init__(self) -> None:
        if self.reach_at is not None and self.reach_at <= self.warmup:
            raise ParameterError(
                f"`reach_at` must come after the warm-up of {self.warmup} epochs, got {self.reach_at}."
            )

    @property
    def end(self) -> int:
        """Number of epochs by which the target is reached."""
        return self.warmup if self.reach_at is None else self.reach_at

    def is_reached(self, epoch: int) -> bool:
        """Return True for epochs (counted from 0) after the ramp."""
        return epoch >= self.end

    def progress(self, position: float) -> float:
        """Return the progress in [0, 1] at a position in epochs since the beginning of training."""
        length = self.end - self.warmup
        return min(max(position - self.warmup, 0.0) / length, 1.0) if length else float(position >= self.warmup)


def check_target(target_sparsity: float | None, reach_at: int | None) -> None:
    """Raise unless a target has an epoch by which it is reached.

    Raises:
        ParameterError: if one of the two is given alone.
    """
    if (target_sparsity is None) != (reach_at is None):
        raise ParameterError("`target_sparsity` and `reach_at` go together: how sparse, and by which epoch.")


@dataclass(frozen=True)
class KeepSchedule:
    """Fraction of the weights that each task keeps, by epoch.

    With a target the sparsity rises as `cubic` over the ramp; otherwise `keep` is constant.

    Args:
        keep: fraction kept, in (0, 1], or task -> its fraction.
        target_sparsity: fraction dropped at the end, in [0, 1), in place of `keep`.
        ramp: epochs in which the sparsity rises.

    Raises:
        ParameterError: if a target has no epoch by which it is reached, or such an epoch no target.
    """

    keep: Keep
    target_sparsity: float | None = None
    ramp: Ramp = Ramp()

    def __post_init__(self) -> None:
        check_target(self.target_sparsity, self.ramp.reach_at)

    def keep_at(self, epoch: int) -> Keep:
        """Return the fraction to keep in masks chosen before an epoch (counted from 0)."""
        if self.target_sparsity is None:
            return self.keep
        return 1 - self.target_sparsity * cubic(self.ramp.progress(epoch))

    def scope(self, asked: Scope | None) -> Scope | None:
        """Return how weights are ranked: as asked for, or by the final fraction; None if tasks differ in it."""
        if asked is not None or self.target_sparsity is None:
            return asked
        return default_scope(1 - self.target_sparsity)

    def falls_at(self, epoch: int) -> bool:
        """Return True if tasks keep less from this epoch on than before."""
        return self.ramp.warmup < epoch <= self.ramp.end

    def is_reached(self, epoch: int) -> bool:
        """Return True after the warm-up; with a target, once it is reached."""
        return self.ramp.is_reached(epoch)


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
    """Progress of training on a ramp, by steps: it rises within epochs as well.

    Args:
        ramp: the ramp.
    """

    def __init__(self, ramp: Ramp) -> None:
        self.ramp = ramp
        self._clock = EpochClock()

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Note the epoch (counted from 0) that begins, and its number of steps."""
        self._clock.begin_epoch(epoch, loaders)

    def step(self) -> None:
        """Count a step."""
        self._clock.step()

    @property
    def begun(self) -> bool:
        """True after the warm-up."""
        return self._clock.epoch >= self.ramp.warmup

    @property
    def progress(self) -> float:
        """Progress in [0, 1]."""
        return self.ramp.progress(self._clock.position)

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs."""
        return self._clock.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore a state of `state_dict`."""
        self._clock.load_state_dict(state)
