"""Nash-MTL with some of its tasks: its problem is made for a number of tasks, and so is its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Bargaining:
    """The bargaining of a `torchjd.aggregation.NashMTL`; see `absent.Memory`.

    Attributes:
        part: the aggregator.
    """

    part: Any

    def take(self, needed: Tensor) -> Any:
        """Bargain among some tasks alone, from what each had agreed to."""
        whole, count = self.part.weighting, int(needed.sum())
        if whole.step == 0:
            whole._init_optim_problem()
        own = type(whole)(
            n_tasks=count,
            max_norm=whole.max_norm,
            update_weights_every=whole.update_weights_every,
            optim_niter=whole.optim_niter,
        )
        own.prvs_alpha, own.step = whole.prvs_alpha[needed.cpu().numpy()], whole.step
        own._init_optim_problem()
        self.part.weighting = own
        return whole

    def give_back(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """Bargain among all again; those that were absent stand by what they had agreed to."""
        own = self.part.weighting
        agreed = before.prvs_alpha.copy()
        agreed[needed.cpu().numpy()] = own.prvs_alpha
        before.prvs_alpha, before.step = agreed, own.step
        self.put(before)

    def put(self, before: Any) -> None:
        """Bargain among all again, as before."""
        self.part.weighting = before


def remake_problem(part: Any) -> None:
    """Make the problem of a bargaining that goes on from a checkpoint: it is made at step 0 only."""
    from torchjd.aggregation import NashMTL

    if isinstance(part, NashMTL) and part.weighting.step > 0:
        part.weighting._init_optim_problem()
