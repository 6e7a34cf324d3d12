"""FAMO, which learns its weights from what a step did to the losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsemtl.balancing.losses import LossBalancer
from sparsemtl.parameters import NonNegative, Positive, validated


class Famo(LossBalancer):
    """Fast adaptive multi-task optimization (Liu et al. 2023); costs one more forward a step.

    Args:
        lr: learning rate of the weights.
        weight_decay: decay of the weights' logits.
    """

    looks_back = True

    @validated
    def __init__(self, *, lr: Positive = 0.025, weight_decay: NonNegative = 1e-3) -> None:
        from torchjd.scalarization import FAMO

        super().__init__(lambda tasks: FAMO(tasks, lr=lr, weight_decay=weight_decay))

    def look_back(self, losses: Tensor) -> None:
        """Move the weights by how far every loss fell."""
        self.module.update(losses)

    def state_dict(self) -> dict[str, Any]:
        """With the state of FAMO's inner Adam."""
        inner = self.module._optimizer
        return {**super().state_dict(), "optimizer": inner.state_dict() if inner is not None else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        super().load_state_dict(state)
        if state["optimizer"] is not None:
            inner = torch.optim.Adam(self.module.parameters(), lr=self.module.lr, weight_decay=self.module.weight_decay)
            inner.load_state_dict(state["optimizer"])
            self.module._optimizer = inner
