"""Fresh start within a run: optimizer and scheduler as they were before the first step."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch.optim import Optimizer


class FreshStart:
    """Puts an optimizer and its schedulers back to their first state, whenever it is called.

    Args:
        optimizer: the optimizer, before its first step.
        schedulers: schedulers of it, or what steps them; None is left out.
    """

    def __init__(self, optimizer: Optimizer, *schedulers: Any) -> None:
        self._optimizer = optimizer
        self._groups = [
            {key: deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
            for group in optimizer.param_groups
        ]
        self._schedulers = [(s, deepcopy(s.state_dict())) for s in schedulers if s is not None]

    def __call__(self) -> None:
        """Clear the moments; restore learning rates and schedules."""
        self._optimizer.state.clear()
        for group, first in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update(deepcopy(first))
        for scheduler, state in self._schedulers:
            scheduler.load_state_dict(deepcopy(state))
