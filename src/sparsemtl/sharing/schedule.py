"""How far training has come on its way from one epoch to another, step by step, and the curve that sparsity follows."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from sparsemtl.tasks.batches import Loaders, per_task


def cubic(way: float) -> float:
    """The share of the final sparsity that is due at a part of the way: 1 - (1 - way)^3 (Zhu & Gupta 2017).

    Args:
        way: in [0, 1], from the first step to the last.
    """
    return 1 - (1 - way) ** 3


class Ramp:
    """Counts the steps from the beginning of epoch `start` to the end of epoch `end` - 1.

    How many steps an epoch has is known from the loader or from the epoch before; until then its steps do not count.

    Args:
        start: epochs before the way begins.
        end: epochs by which it ends; None: it has no end, and is at its beginning for ever.
    """

    def __init__(self, start: int, end: int | None) -> None:
        self.start = start
        self.end = end
        self.epoch = 0
        self._steps = 0
        self._steps_in_epoch = 0

    def begin_epoch(self, epoch: int, loaders: Loaders) -> None:
        """Learn which epoch (counted from 0) begins, and how many steps it may have."""
        if epoch > 0 and self._steps:
            self._steps_in_epoch = self._steps
        elif not per_task(loaders) and isinstance(loaders, Sized):
            self._steps_in_epoch = len(loaders)
        self.epoch, self._steps = epoch, 0

    def step(self) -> None:
        """Count a step."""
        self._steps += 1

    @property
    def begun(self) -> bool:
        """True from epoch `start` on."""
        return self.epoch >= self.start

    @property
    def way(self) -> float:
        """The part of the way that lies behind, in [0, 1]."""
        if self.end is None:
            return 0.0
        within = min(self._steps / self._steps_in_epoch, 1.0) if self._steps_in_epoch else 1.0
        return min(max(self.epoch + within - self.start, 0.0) / (self.end - self.start), 1.0)

    def state_dict(self) -> dict[str, int]:
        """Everything that a resumed run needs."""
        return {"epoch": self.epoch, "steps": self._steps, "steps_in_epoch": self._steps_in_epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Put it back."""
        self.epoch, self._steps, self._steps_in_epoch = (
            int(state[key]) for key in ("epoch", "steps", "steps_in_epoch")
        )
