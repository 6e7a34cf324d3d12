"""Balancing by gradients: TorchJD's aggregators on the rows of the tasks' (masked) shared gradients.

Heads get their own task's plain gradient, the shared weights the aggregate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsemtl.balancing.absent import aggregate
from sparsemtl.balancing.balancer import TorchJD
from sparsemtl.registry.parameters import Count, Positive, Share

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator


class GradientBalancer(TorchJD):
    """An aggregator: one gradient out of T.

    Args:
        make: number of tasks -> a `torchjd.aggregation.Aggregator`.
    """

    combines_gradients = True

    def __init__(self, make: Callable[[int], Aggregator]) -> None:
        super().__init__(make)

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """One for every task: the aggregator does the rest."""
        return torch.ones_like(losses)

    def aggregate(self, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Aggregate (T, P) into (P,); see `absent` for tasks that are not present."""
        everybody = torch.ones(len(rows), dtype=torch.bool)
        return aggregate(self.module, rows, everybody if present is None else present)


def mgda(*, epsilon: Positive = 1e-6, max_iters: Count = 1000) -> GradientBalancer:
    """Minimum-norm point of the gradients' convex hull (Désidéri 2012; Sener & Koltun 2018)."""
    from torchjd.aggregation import MGDA

    return GradientBalancer(lambda tasks: MGDA(epsilon, max_iters))


def pcgrad() -> GradientBalancer:
    """Project conflicting gradients onto each other's normal planes (Yu et al. 2020)."""
    from torchjd.aggregation import PCGrad

    return GradientBalancer(lambda tasks: PCGrad())


def gradvac(*, beta: Share = 0.5) -> GradientBalancer:
    """Gradient vaccine: set pairwise similarities to their running averages (Wang et al. 2021)."""
    from torchjd.aggregation import GradVac

    return GradientBalancer(lambda tasks: GradVac(beta))


def graddrop() -> GradientBalancer:
    """Drop entries at random by the agreement of their signs (Chen et al. 2020)."""
    from torchjd.aggregation import GradDrop

    return GradientBalancer(lambda tasks: GradDrop())


def imtl_g() -> GradientBalancer:
    """IMTL-G: an update with equal projections on all tasks' gradients (Liu et al. 2021)."""
    from torchjd.aggregation import IMTLG

    return GradientBalancer(lambda tasks: IMTLG())


def aligned_mtl() -> GradientBalancer:
    """Align the gradients' principal components (Senushkin et al. 2023)."""
    from torchjd.aggregation import AlignedMTL

    return GradientBalancer(lambda tasks: AlignedMTL())


def config() -> GradientBalancer:
    """Conflict-free inverse gradients (Liu et al. 2024)."""
    from torchjd.aggregation import ConFIG

    return GradientBalancer(lambda tasks: ConFIG())


def random_gradients() -> GradientBalancer:
    """Random gradient weighting (Lin et al. 2021)."""
    from torchjd.aggregation import Random

    return GradientBalancer(lambda tasks: Random())
