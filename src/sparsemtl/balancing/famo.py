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
from sparsemtl.errors import ParameterError
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
    min_losses: Annotated[
        list[float] | None,
        Doc("Smallest loss of each task, in the tasks' order, that logarithms are taken above; 0 by default."),
    ] = None,
) -> Famo:
    """Fast adaptive multi-task optimization: all losses fall at one relative rate (Liu et al. 2023)."""
    return Famo(partial(_famo, lr, weight_decay, min_losses))


def _famo(lr: float, weight_decay: float, min_losses: list[float] | None, tasks: int) -> FAMO:
    """Return the scalarizer; unlike a lambda, this function can be pickled."""
    from torchjd.scalarization import FAMO

    if min_losses is not None and len(min_losses) != tasks:
        raise ParameterError(f"famo: {tasks} tasks need {tasks} numbers in `min_losses`, got {len(min_losses)}.")
    smallest = None if min_losses is None else torch.tensor(min_losses, dtype=torch.float32)
    return FAMO(tasks, smallest, lr, weight_decay)
