"""Group lasso without its bias: large channels are left as they are."""

from __future__ import annotations

from sparsemtl.optim.penalties import GroupMCP
from sparsemtl.optim.proximal_step import ProxLR
from sparsemtl.registry.parameters import Count, Natural, NonNegative, Positive, Share, validated
from sparsemtl.sharing.group_lasso import Granularity
from sparsemtl.sharing.proximal import ProximalSharing
from sparsemtl.sharing.sharing import Statistics, Update


class GroupMCPSharing(ProximalSharing):
    """Minimax concave penalty on the channels of the shared convolutions (Zhang 2010; Huang et al. 2012).

    Args:
        lambda_: strength of the penalty, in a configuration `lambda`.
        gamma: a group whose norm is above gamma * lambda * sqrt(n_g) is not shrunk.
        granularity: what becomes zero together: `input-channel` W[:, c], `output-channel` W[n], or `block`.
        keep_min: groups of every layer that always survive.
        linear: make linear layers sparse as well.
        adaptive, prox_lr, start, target_sparsity, reach_at, penalty_in_loss, update, bn: see
            `ProximalSharing`.
    """

    @validated
    def __init__(
        self,
        *,
        lambda_: NonNegative = 1e-5,
        gamma: Positive = 3.0,
        granularity: Granularity = "input-channel",
        keep_min: Natural = 0,
        linear: bool = False,
        adaptive: bool = True,
        prox_lr: ProxLR = "lr",
        start: Natural = 0,
        target_sparsity: Share | None = None,
        reach_at: Count | None = None,
        penalty_in_loss: bool = False,
        update: Update | None = None,
        bn: Statistics = "shared",
    ) -> None:
        super().__init__(
            GroupMCP(strength=lambda_, gamma=gamma, granularity=granularity, keep_min=keep_min, linear=linear),
            adaptive=adaptive,
            prox_lr=prox_lr,
            start=start,
            target_sparsity=target_sparsity,
            reach_at=reach_at,
            penalty_in_loss=penalty_in_loss,
            update=update,
            bn=bn,
        )
