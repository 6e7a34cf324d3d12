"""FAMO, which learns its weights from what a step did to the losses."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from sparsemtl.balancing.losses import LossBalancer, held_entries
from sparsemtl.registry.parameters import NonNegative, Positive


class Famo(LossBalancer):
    """Looks back at the same batch after every step; costs one more forward.

    Args:
        make: number of tasks -> a `torchjd.scalarization.FAMO`.
    """

    needs_post_step_losses = True

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the module with the optimizer that TorchJD makes at the first update, so that states have one form."""
        super().attach(tasks, device)
        module = self.module
        module._optimizer = torch.optim.Adam([module._w], lr=module.lr, weight_decay=module.weight_decay)

    def observe_post_step_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Move the weights by how far every loss fell; those of tasks without a label stay."""
        if present is None or bool(present.all()):
            self.module.update(losses)
        elif bool(present.any()):
            with held_entries([self.module._w], ~present, self.module._optimizer):
                self.module.update(losses)

    def state_dict(self) -> dict[str, Any]:
        """With the moments of the optimizer that moves the weights."""
        return {**super().state_dict(), "optimizer": deepcopy(self.module._optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        super().load_state_dict(state)
        self.module._optimizer.load_state_dict(state["optimizer"])


def famo(*, lr: Positive = 0.025, weight_decay: NonNegative = 1e-3) -> Famo:
    """Fast adaptive multi-task optimization: all losses fall at one relative rate (Liu et al. 2023)."""
    from torchjd.scalarization import FAMO

    return Famo(lambda tasks: FAMO(tasks, lr=lr, weight_decay=weight_decay))
