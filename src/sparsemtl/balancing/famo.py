"""FAMO: weights that are learned from the change of the losses in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Doc

from sparsemtl.balancing.balancer import Balancer
from sparsemtl.balancing.frozen_entries import frozen_entries
from sparsemtl.balancing.losses import LossBalancer
from sparsemtl.registry.parameters import NonNegative, Positive

if TYPE_CHECKING:
    from torchjd.scalarization import FAMO


class Famo(Balancer):
    """Computes the losses of the same batch once more after every step; costs one more forward pass.

    Args:
        make: function from the number of tasks to a `torchjd.scalarization.FAMO`.
    """

    needs_post_step_losses = True

    def __init__(self, make: Callable[[int], FAMO]) -> None:
        self._scalarizer = LossBalancer(make)

    @property
    def module(self) -> Any:
        """TorchJD module, once attached."""
        return self._scalarizer.module

    def attach(self, tasks: int, device: torch.device) -> None:
        """Make the module, and the optimizer that TorchJD makes at the first update: states then have one form."""
        self._scalarizer.attach(tasks, device)
        module = self.module
        module._optimizer = torch.optim.Adam([module._w], lr=module.lr, weight_decay=module.weight_decay)

    def weights(self, losses: Tensor, present: Tensor | None = None) -> Tensor:
        """Return the slopes of the scalarizer at these losses."""
        return self._scalarizer.weights(losses, present)

    def observe_post_step_losses(self, losses: Tensor, present: Tensor | None = None) -> None:
        """Update the weights by the fall of every loss; entries of tasks without a label do not change."""
        if present is None or bool(present.all()):
            self.module.update(losses)
        elif bool(present.any()):
            with frozen_entries([self.module._w], ~present, self.module._optimizer):
                self.module.update(losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the scalarizer's state and that of the optimizer of its weights."""
        return {**self._scalarizer.state_dict(), "optimizer": deepcopy(self.module._optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._scalarizer.load_state_dict(state)
        self.module._optimizer.load_state_dict(state["optimizer"])


def famo(
    *,
    lr: Annotated[Positive, Doc("Learning rate of the Adam optimizer of the task weights.")] = 0.025,
    weight_decay: Annotated[NonNegative, Doc("Weight decay of that optimizer.")] = 1e-3,
) -> Famo:
    """Fast adaptive multi-task optimization: all losses fall at one relative rate (Liu et al. 2023)."""
    from torchjd.scalarization import FAMO

    return Famo(partial(FAMO, lr=lr, weight_decay=weight_decay))
