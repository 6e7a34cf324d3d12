"""Nash-MTL on some of the tasks: its optimization problem and its state have a fixed number of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class BargainingState:
    """State of a `torchjd.aggregation.NashMTL`; see `absent.TaskState`.

    Attributes:
        part: the aggregator.
    """

    part: Any

    def restrict(self, needed: Tensor) -> Any:
        """Replace the problem by one of the needed tasks, which starts at their last solution."""
        full, count = self.part.weighting, int(needed.sum())
        if full.step == 0:
            full._init_optim_problem()
        own = type(full)(
            n_tasks=count,
            max_norm=full.max_norm,
            update_weights_every=full.update_weights_every,
            optim_niter=full.optim_niter,
        )
        own.prvs_alpha, own.step = full.prvs_alpha[needed.cpu().numpy()], full.step
        own._init_optim_problem()
        self.part.weighting = own
        return full

    def merge(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """Return to the problem of all tasks; absent tasks keep their last solution."""
        own = self.part.weighting
        solution = before.prvs_alpha.copy()
        solution[needed.cpu().numpy()] = own.prvs_alpha
        before.prvs_alpha, before.step = solution, own.step
        self.restore(before)

    def restore(self, before: Any) -> None:
        """Return to the problem of all tasks as it was."""
        self.part.weighting = before


def init_problem(part: Any) -> None:
    """Initialize the problem of a `NashMTL` whose state was loaded; TorchJD does so at step 0 only."""
    from torchjd.aggregation import NashMTL

    if isinstance(part, NashMTL) and part.weighting.step > 0:
        part.weighting._init_optim_problem()
