"""Balancing by gradients: TorchJD's aggregators on the tasks' (masked) gradients of the shared weights.

Heads get the plain gradient of their own task, shared weights the aggregate.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.balancing.absent import aggregate
from sparsemtl.balancing.torchjd_balancer import TorchJDBalancer
from sparsemtl.registry.parameters import Count, Positive, Share


class GradientBalancer(TorchJDBalancer):
    """Combines T gradients into one by an aggregator.

    Args:
        make: function from the number of tasks to a `torchjd.aggregation.Aggregator`.
    """

    combines_gradients = True

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return ones (T,): the aggregator weighs the gradients."""
        return torch.ones_like(losses)

    def aggregate(self, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Combine gradients (T, P) into one (P,); see the module `absent` for tasks that are not present."""
        everybody = torch.ones(len(rows), dtype=torch.bool)
        return aggregate(self.module, rows, everybody if present is None else present)


def mgda(
    *,
    epsilon: Annotated[Positive, Doc("Step size of the Frank-Wolfe solver below which the solver stops.")] = 1e-6,
    max_iters: Annotated[Count, Doc("Largest number of iterations of the solver per training step.")] = 1000,
) -> GradientBalancer:
    """Minimum-norm point of the gradients' convex hull (Désidéri 2012; Sener & Koltun 2018)."""
    from torchjd.aggregation import MGDA

    return GradientBalancer(lambda tasks: MGDA(epsilon, max_iters))


def pcgrad() -> GradientBalancer:
    """Projection of conflicting gradients onto each other's normal planes (Yu et al. 2020)."""
    from torchjd.aggregation import PCGrad

    return GradientBalancer(lambda tasks: PCGrad())


def gradvac(
    *,
    beta: Annotated[Share, Doc("Decay of the running averages of the gradients' cosine similarities.")] = 0.5,
) -> GradientBalancer:
    """Gradient vaccine: pairwise cosine similarities are set to their running averages (Wang et al. 2021)."""
    from torchjd.aggregation import GradVac

    return GradientBalancer(lambda tasks: GradVac(beta))


def graddrop() -> GradientBalancer:
    """Gradient sign dropout: entries are dropped at random by the agreement of their signs (Chen et al. 2020)."""
    from torchjd.aggregation import GradDrop

    return GradientBalancer(lambda tasks: GradDrop())


def imtl_g() -> GradientBalancer:
    """IMTL-G: an update with equal projections on all tasks' gradients (Liu et al. 2021)."""
    from torchjd.aggregation import IMTLG

    return GradientBalancer(lambda tasks: IMTLG())


def aligned_mtl() -> GradientBalancer:
    """Alignment of the gradients' principal components (Senushkin et al. 2023)."""
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
