"""Less is More: shared convolutions that shed their own channels while they train."""

from __future__ import annotations

from typing import Literal

from sparsemtl.optim.penalties import GroupLasso
from sparsemtl.optim.proximal_step import ProxLR
from sparsemtl.registry.parameters import Count, Natural, NonNegative, Share, validated
from sparsemtl.sharing.proximal import ProximalSharing
from sparsemtl.sharing.sharing import Statistics, Update

Granularity = Literal["input-channel", "output-channel", "block"]


class GroupLassoSharing(ProximalSharing):
    """Channel-wise l1/l2 group sparsity of the shared convolutions (Upadhyay et al., Less is More, 2023).

    After every step of the optimizer the proximal map of lambda * sum of sqrt(n_g) |W_g| is applied (Eq. 3 to 5),
    W_g being the weights of one input channel of one convolution; channels that no task needs become exactly zero.

    Args:
        lambda_: strength of the penalty, in a configuration `lambda`. The paper: 1e-6 and 1e-5.
        granularity: what becomes zero together: `input-channel` W[:, c] as in the paper, `output-channel` W[n], or
            `block`.
        keep_min: groups of every layer that always survive.
        linear: make linear layers sparse as well.
        adaptive, prox_lr, start, target_sparsity, reach_at, penalty_in_loss, update, bn: see
            `ProximalSharing`.

    Differences from the paper and its code:
        - The plain step of Eq. 5 is `adaptive=False`; the code, and the lambdas of the paper, are of the adaptive one.
        - The code also adds the penalty to the loss (`penalty_in_loss` does), weighing a group there by the square root
          of the number of channels.
        - The code makes a new optimizer every epoch, whose moments start again (`training.restart_every: 1` does).
        - The code's dense baseline has coupled weight decay, its sparse runs decoupled; a fair one is lambda = 0 here.
    """

    @validated
    def __init__(
        self,
        *,
        lambda_: NonNegative = 1e-5,
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
            GroupLasso(strength=lambda_, granularity=granularity, keep_min=keep_min, linear=linear),
            adaptive=adaptive,
            prox_lr=prox_lr,
            start=start,
            target_sparsity=target_sparsity,
            reach_at=reach_at,
            penalty_in_loss=penalty_in_loss,
            update=update,
            bn=bn,
        )
