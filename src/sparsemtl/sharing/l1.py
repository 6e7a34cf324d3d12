"""The unstructured control of group lasso: single weights become zero."""

from __future__ import annotations

from sparsemtl.optim.penalties import L1
from sparsemtl.optim.proximal_step import ProxLR
from sparsemtl.registry.parameters import Count, Natural, NonNegative, Share, validated
from sparsemtl.sharing.proximal import ProximalSharing
from sparsemtl.sharing.sharing import Statistics, Update


class L1Sharing(ProximalSharing):
    """l1 sparsity of the shared convolutions (Upadhyay et al., Less is More, 2023, Table 3).

    Soft thresholding of single weights after every step of the optimizer; channels become zero by accident only.

    Args:
        lambda_: strength of the penalty, in a configuration `lambda`. The paper: 1e-3.
        keep_min: weights of every layer that always survive.
        linear: make linear layers sparse as well.
        adaptive, prox_lr, start, target_sparsity, reach_at, penalty_in_loss, update, bn: see
            `ProximalSharing`; a group is a weight.
    """

    @validated
    def __init__(
        self,
        *,
        lambda_: NonNegative = 1e-3,
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
            L1(strength=lambda_, keep_min=keep_min, linear=linear),
            adaptive=adaptive,
            prox_lr=prox_lr,
            start=start,
            target_sparsity=target_sparsity,
            reach_at=reach_at,
            penalty_in_loss=penalty_in_loss,
            update=update,
            bn=bn,
        )
