"""Dynamic weight average over the batches in which a task has a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.losses import LossBalancer
from sparsemtl.balancing.torchjd_module import Always
from sparsemtl.registry.parameters import Positive

if TYPE_CHECKING:
    from torchjd.scalarization import DWA


class DynamicWeights(Balancer):
    """Weights tasks by the ratio of their mean losses in the last two epochs.

    A task's mean is over the batches in which the task has a label. A task without a label in a whole epoch keeps its
    ratio; a task with one epoch so far has the ratio 1.

    Args:
        make: function from the number of tasks to a `torchjd.scalarization.DWA`.
    """

    def __init__(self, make: Callable[[int], DWA]) -> None:
        self._scalarizer = LossBalancer(make)
        self._sums = self._counts = self._epochs = torch.zeros(0)

    @property
    def module(self) -> Any:
        """TorchJD module, once attached."""
        return self._scalarizer.module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Start with zero epochs."""
        self._scalarizer.attach(tasks, device)
        self._sums, self._counts, self._epochs = torch.zeros(3, tasks, device=device).unbind()

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the slopes of the scalarizer at these losses."""
        here = torch.ones_like(losses, dtype=torch.bool) if present is None else present.to(losses.device)
        self._sums = self._sums + torch.where(here, losses.detach(), 0.0)
        self._counts = self._counts + here
        return self._scalarizer.weights(losses, present)

    def end_epoch(self) -> None:
        """Append this epoch's averages, each over the batches in which its task has a label."""
        # TorchJD's averages are over all batches, and it offers no public way to set them.
        before, here = list(self.module._previous_averages), self._counts > 0
        self._scalarizer.end_epoch()
        if here.any() and bool((self._counts < self._counts.max()).any() or (self._epochs == 0).any()):
            self.module._previous_averages = self._corrected(before, here)
        self._epochs = self._epochs + here
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)

    def _corrected(self, before: list[Tensor], here: Tensor) -> list[Tensor]:
        """Return the last averages, where some tasks had fewer batches or epochs than others."""
        newest = self._sums / self._counts.clamp(min=1)
        if not before:
            return [torch.where(here, newest, 1.0)]
        older = torch.where(here & (self._epochs > 0), before[-1], torch.where(here, newest, before[0]))
        return [older, torch.where(here, newest, before[-1])]

    def state_dict(self) -> dict[str, Any]:
        """Return the scalarizer's state and the sums of the current epoch."""
        own = {"sums": self._sums.clone(), "counts": self._counts.clone(), "epochs": self._epochs.clone()}
        return {**self._scalarizer.state_dict(), "epoch": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._scalarizer.load_state_dict(state)
        own = {name: tensor.clone().to(self._sums.device) for name, tensor in state["epoch"].items()}
        self._sums, self._counts, self._epochs = own["sums"], own["counts"], own["epochs"]


def dwa(
    *,
    temperature: Annotated[
        Positive, Doc("Temperature of the softmax over the ratios; larger values give more equal weights.")
    ] = 2.0,
) -> DynamicWeights:
    """Dynamic weight average: tasks whose loss falls slowly weigh more (Liu et al. 2019)."""
    from torchjd.scalarization import DWA

    return DynamicWeights(Always(DWA, temperature))
