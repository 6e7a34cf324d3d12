"""Balancing by gradients: TorchJD's aggregators on the tasks' (masked) gradients of the shared weights.

Heads get the plain gradient of their own task, shared weights the aggregate.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.balancing.absent import aggregate
from sparsemtl.balancing.torchjd_balancer import Always, TorchJDBalancer
from sparsemtl.registry.parameters import NonNegative, Share


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


def mgda() -> GradientBalancer:
    """Minimum-norm point of the gradients' convex hull, exact to rounding (Désidéri 2012; Sener & Koltun 2018)."""
    from sparsemtl.balancing import solved

    return GradientBalancer(Always(solved.mgda))


def cagrad(
    *,
    c: Annotated[NonNegative, Doc("Radius of the ball around the mean gradient, over the mean's length.")] = 0.5,
) -> GradientBalancer:
    """Conflict-averse gradient: near the mean, the best for the task that gains least (Liu et al. 2021)."""
    from sparsemtl.balancing import solved

    return GradientBalancer(Always(solved.cagrad, c))


def nash_mtl(
    *,
    max_norm: Annotated[
        NonNegative, Doc("Largest norm of the combined gradient of the shared weights; 0 sets no limit.")
    ] = 1.0,
) -> GradientBalancer:
    """Nash bargaining solution of the gradients, solved anew at every step (Navon et al. 2022)."""
    from sparsemtl.balancing import solved

    return GradientBalancer(Always(solved.nash_mtl, max_norm))


def pcgrad() -> GradientBalancer:
    """Projection of conflicting gradients onto each other's normal planes (Yu et al. 2020)."""
    from torchjd.aggregation import PCGrad

    return GradientBalancer(Always(PCGrad))


def gradvac(
    *,
    beta: Annotated[Share, Doc("Decay of the running averages of the gradients' cosine similarities.")] = 0.5,
) -> GradientBalancer:
    """Gradient vaccine: pairwise cosine similarities are set to their running averages (Wang et al. 2021)."""
    from torchjd.aggregation import GradVac

    return GradientBalancer(Always(GradVac, beta))


def graddrop() -> GradientBalancer:
    """Gradient sign dropout: entries are dropped at random by the agreement of their signs (Chen et al. 2020)."""
    from torchjd.aggregation import GradDrop

    return GradientBalancer(Always(GradDrop))


def imtl_g() -> GradientBalancer:
    """IMTL-G: an update with equal projections on all tasks' gradients (Liu et al. 2021)."""
    from torchjd.aggregation import IMTLG

    return GradientBalancer(Always(IMTLG))


def aligned_mtl() -> GradientBalancer:
    """Alignment of the gradients' principal components (Senushkin et al. 2023)."""
    from torchjd.aggregation import AlignedMTL

    return GradientBalancer(Always(AlignedMTL))


def config() -> GradientBalancer:
    """Conflict-free inverse gradients (Liu et al. 2024)."""
    from torchjd.aggregation import ConFIG

    return GradientBalancer(Always(ConFIG))


def random_gradients() -> GradientBalancer:
    """Random gradient weighting (Lin et al. 2021)."""
    from torchjd.aggregation import Random

    return GradientBalancer(Always(Random))
