"""Strict updates: what is outside of a mask does not move, whatever the optimizer remembers.

Masking a gradient does not freeze a weight: momentum, Adam's moments and weight decay go on moving it. So the
weights outside of the active masks are put back after every step (METHODS.md §0, "strict update").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.masks import TaskMasks


@contextmanager
def held_outside(parameters: Mapping[str, Tensor], active: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Whatever happens to the parameters inside the context, entries outside of `active` end as they were, bit for bit.

    Args:
        parameters: name -> parameter.
        active: name -> bool tensor, True where the parameter may move; None lets everything move.
    """
    if active is None:
        yield
        return
    before = {name: parameters[name].detach().clone() for name in active}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, mask in active.items():
                parameter = parameters[name]
                torch.where(mask, parameter, before[name], out=parameter)


class MaskedOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, made strict: a weight that none of the active tasks keeps does not move.

    Args:
        optimizer: the optimizer that does the work, with any momentum and weight decay.
        masks: what every task keeps.
        model: the model whose parameters the masks name.

    Learning-rate schedulers, gradient scalers and `state_dict` see the wrapped optimizer's groups and state.

    Example:
        >>> optimizer = MaskedOptimizer(torch.optim.AdamW(model.parameters()), masks, model)  # doctest: +SKIP
        >>> optimizer.step()               # moves what at least one task keeps       # doctest: +SKIP
        >>> optimizer.step(task="digit")   # moves what this task keeps, and the rest of the model  # doctest: +SKIP
    """

    def __init__(self, optimizer: torch.optim.Optimizer, masks: TaskMasks, model: nn.Module) -> None:
        self.optimizer = optimizer
        self._model = model
        self.masks = masks

    @property
    def masks(self) -> TaskMasks:
        """The masks in force; set new ones whenever they change."""
        return self._masks

    @masks.setter
    def masks(self, masks: TaskMasks) -> None:
        self._parameters = masks.check(self._model)
        self._masks = masks
        self._unions: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, task: str | Sequence[str] | None = None
    ) -> float | None:
        """Step, then put back what lies outside of the masks of `task` (one, several, or all by default)."""
        tasks = self._masks.tasks if task is None else (task,) if isinstance(task, str) else tuple(task)
        if tasks not in self._unions:
            union = self._masks.union(tasks)
            self._unions[tasks] = {name: m.to(self._parameters[name].device) for name, m in union.items()}
        with held_outside(self._parameters, self._unions[tasks]):
            return self.optimizer.step(closure) if closure is not None else self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back the wrapped optimizer's state."""
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state by parameter."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    def __repr__(self) -> str:
        return f"MaskedOptimizer({self.optimizer!r})"
