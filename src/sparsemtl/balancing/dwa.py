"""DWA, whose averages are of the batches in which a task has a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsemtl.balancing.losses import LossBalancer
from sparsemtl.registry.parameters import Positive

if TYPE_CHECKING:
    from torchjd.scalarization import DWA


class DynamicWeights(LossBalancer):
    """Weights tasks by the ratio of their mean losses in the last two epochs.

    A task's mean is over the batches in which it has a label. A task without one in a whole epoch keeps its ratio; one
    with a single epoch so far has the ratio 1.

    Args:
        make: number of tasks -> a `torchjd.scalarization.DWA`.
    """

    def __init__(self, make: Callable[[int], DWA]) -> None:
        super().__init__(make)
        self._sums = self._counts = self._epochs = torch.zeros(0)

    def attach(self, tasks: int, device: torch.device) -> None:
        """Start with no epoch behind."""
        super().attach(tasks, device)
        self._sums, self._counts, self._epochs = torch.zeros(3, tasks, device=device).unbind()

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Slopes of the scalarizer at these losses."""
        here = torch.ones_like(losses, dtype=torch.bool) if present is None else present.to(losses.device)
        self._sums = self._sums + torch.where(here, losses.detach(), 0.0)
        self._counts = self._counts + here
        return super().weights(losses, present)

    def end_epoch(self) -> None:
        """Roll the history on, every task by its own batches."""
        before, here = list(self.module._previous_averages), self._counts > 0
        super().end_epoch()
        if here.any() and bool((self._counts < self._counts.max()).any() or (self._epochs == 0).any()):
            self.module._previous_averages = self._mended(before, here)
        self._epochs = self._epochs + here
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)

    def _mended(self, before: list[Tensor], here: Tensor) -> list[Tensor]:
        """The last averages, where some tasks had fewer batches or epochs than others."""
        newest = self._sums / self._counts.clamp(min=1)
        if not before:
            return [torch.where(here, newest, 1.0)]
        older = torch.where(here & (self._epochs > 0), before[-1], torch.where(here, newest, before[0]))
        return [older, torch.where(here, newest, before[-1])]

    def state_dict(self) -> dict[str, Any]:
        """With the sums of the epoch under way."""
        own = {"sums": self._sums.clone(), "counts": self._counts.clone(), "epochs": self._epochs.clone()}
        return {**super().state_dict(), "epoch": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        super().load_state_dict(state)
        own = {name: tensor.clone().to(self._device) for name, tensor in state["epoch"].items()}
        self._sums, self._counts, self._epochs = own["sums"], own["counts"], own["epochs"]


def dwa(*, temperature: Positive = 2.0) -> DynamicWeights:
    """Dynamic weight average: tasks whose loss falls slowly weigh more (Liu et al. 2019)."""
    from torchjd.scalarization import DWA

    return DynamicWeights(lambda tasks: DWA(temperature))
