"""Strict updates: what is outside of a mask does not move, whatever the optimizer remembers.

Masking a gradient does not freeze a weight: momentum, Adam's moments and weight decay go on moving it. So the
weights outside of the active masks are put back after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsemtl.errors import ParameterError
from sparsemtl.networks.masks import TaskMasks


class FreezeOutsideMask:
    """Context in which whatever happens to the parameters, entries outside of a mask end as they were, bit for bit.

    It may be entered any number of times. Bits are put back by integer arithmetic, which is exact for NaN, infinities
    and signed zeros too, and several times as fast as choosing by booleans.

    Args:
        parameters: name -> parameter, for all names in `active`.
        active: name -> bool tensor, True where the parameter may move.
        memory: where the values are remembered meanwhile, name -> tensor; holds that are not entered at once may
            share it.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], active: Mapping[str, Tensor], memory: dict[str, Tensor] | None = None
    ) -> None:
        self.active = active
        self._parameters = {name: parameters[name] for name in active}
        self._memory = {} if memory is None else memory
        self._moving: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        for name, parameter in self._parameters.items():
            before = self._memory.get(name)
            if before is None or before.dtype != parameter.dtype or before.device != parameter.device:
                before = self._memory[name] = torch.empty_like(parameter, requires_grad=False)
            before.copy_(parameter.detach())

    def __exit__(self, *error: object) -> None:
        for name, parameter in self._parameters.items():
            now, before = _bits(parameter), _bits(self._memory[name])
            now.bitwise_xor_(before).bitwise_and_(self._bits_that_move(name, now)).bitwise_xor_(before)

    def _bits_that_move(self, name: str, like: Tensor) -> Tensor:
        """The mask with all bits of an entry set where it may move."""
        moving = self._moving.get(name)
        if moving is None or moving.dtype != like.dtype or moving.device != like.device:
            moving = self._moving[name] = self.active[name].to(like.device, like.dtype).neg_()
        return moving


def freeze_outside_mask(
    parameters: Mapping[str, Tensor], active: Mapping[str, Tensor] | None
) -> AbstractContextManager[None]:
    """Freeze once what lies outside of `active` once; None lets everything move. See `FreezeOutsideMask`."""
    return nullcontext() if active is None else FreezeOutsideMask(parameters, active)


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as whole numbers of the same width."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskedOptimizer(torch.optim.Optimizer):
    """Any torch optimizer, made strict: a weight that none of the active tasks keeps does not move.

    Args:
        optimizer: the optimizer that does the work, with any momentum and weight decay.
        masks: what every task keeps.
        model: the model whose parameters the masks name.

    Learning-rate schedulers, gradient scalers and `state_dict` see the wrapped optimizer's groups and state. A copy
    (`copy.deepcopy`, pickle) holds a copy of the model as well: copy both at once, as `deepcopy((model, optimizer))`.

    Example:
        >>> optimizer = MaskedOptimizer(torch.optim.AdamW(model.parameters()), masks, model)  # doctest: +SKIP
        >>> optimizer.step()               # moves what at least one task keeps       # doctest: +SKIP
        >>> optimizer.step(task="digit")   # moves what this task keeps, and the rest of the model  # doctest: +SKIP
    """

    #: Gradient scalers must unscale before the step: a fused optimizer inside does not see a scale set on this one.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: torch.optim.Optimizer, masks: TaskMasks, model: nn.Module) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ParameterError(
                "MaskedOptimizer: `optimizer` must be a torch optimizer, such as "
                f"torch.optim.AdamW(model.parameters()), got {optimizer!r}."
            )
        self.optimizer = optimizer
        self._model = model
        self.masks = masks

    def __getstate__(self) -> dict[str, Any]:
        """The state without what is made from the rest, and without `step`, which schedulers wrap in the instance."""
        made = ("step", "_parameters", "_holds", "_memory")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state as it is: torch's own method expects an optimizer with groups and hooks of its own."""
        self.__dict__.update(state)
        self.masks = state["_masks"]

    @property
    def masks(self) -> TaskMasks:
        """The masks in force; set new ones whenever they change."""
        return self._masks

    @masks.setter
    def masks(self, masks: TaskMasks) -> None:
        self._parameters = masks.check(self._model)
        self._masks = masks
        self._holds: dict[tuple[str, ...], FreezeOutsideMask] = {}
        self._memory: dict[str, Tensor] = {}

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, task: str | Sequence[str] | None = None
    ) -> float | None:
        """Step, then put back what lies outside of the masks of `task` (one, several, or all by default)."""
        tasks = self._masks.tasks if task is None else (task,) if isinstance(task, str) else tuple(task)
        if tasks not in self._holds:
            self._holds[tasks] = FreezeOutsideMask(self._parameters, self._masks.union(tasks), self._memory)
        with self._holds[tasks]:
            return self.optimizer.step(closure) if closure is not None else self.optimizer.step()

    step.hooked = True  # type: ignore[attr-defined]  # torch shall not wrap it to call hooks: those are the inner step's

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

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """Call a hook before every step of the wrapped optimizer."""
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """Call a hook after every step of the wrapped optimizer, before weights are put back."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook before the wrapped optimizer gives its state."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook after the wrapped optimizer gave its state."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook before the wrapped optimizer loads a state."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook after the wrapped optimizer loaded a state."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

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
