"""Strict updates: a weight outside of the active masks does not move, whatever the state of the optimizer.

Masking a gradient does not freeze a weight: momentum, Adam's moments and weight decay still move it. Therefore the
weights outside of the active masks are restored after every step. This is the one implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsemtl.errors import ParameterError
from sparsemtl.kernels import restore
from sparsemtl.networks.masked_product import cached_parts
from sparsemtl.networks.masks import TaskMasks


class FreezeOutsideMask:
    """Context after which the entries of parameters outside of a mask are as before, bit for bit.

    It may be entered any number of times. Whole rows (first axis) that may not move are copied, and nothing where all
    may move. Elsewhere bits are restored by integer arithmetic, which is exact for NaN, infinities and signed zeros
    too, and several times as fast as indexing or `torch.where`.

    Args:
        parameters: name -> parameter, for all names in `active`.
        active: name -> bool tensor, True where the parameter may move; it must not change.
        memory: name -> tensor that holds the values meanwhile; instances that are not entered at the same time may
            share it.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], active: Mapping[str, Tensor], memory: dict[str, Tensor] | None = None
    ) -> None:
        self.active = active
        self._parameters = {name: parameters[name] for name in active}
        self._memory = {} if memory is None else memory
        self._moved: dict[tuple[str, torch.device], Tensor] = {}
        self._rows: dict[str, Tensor | None] = {}

    def __enter__(self) -> None:
        for name, parameter in self._parameters.items():
            if name not in self._rows:
                self._rows[name] = _frozen_rows(self.active[name])
            rows, own = self._rows[name], parameter.detach()
            if rows is not None and not len(rows):
                continue
            before = self._memory.get(name)
            if before is None or before.dtype != parameter.dtype or before.device != parameter.device:
                before = self._memory[name] = torch.empty_like(parameter, requires_grad=False)
            if rows is None:
                before.copy_(own)
            else:
                rows = self._rows[name] = rows.to(parameter.device)
                torch.index_select(_bits(own), 0, rows, out=_bits(before)[: len(rows)])

    def __exit__(self, *error: object) -> None:
        for name, parameter in self._parameters.items():
            rows = self._rows[name]
            if rows is None:
                _restore(_bits(parameter), _bits(self._memory[name]), self._active_on(name, parameter.device))
            elif len(rows):
                _bits(parameter).index_copy_(0, rows, _bits(self._memory[name])[: len(rows)])

    def _active_on(self, name: str, device: torch.device) -> Tensor:
        """Return the mask on the device of its parameter, moved once."""
        if self.active[name].device == device:
            return self.active[name]
        if (name, device) not in self._moved:
            self._moved[name, device] = self.active[name].to(device)
        return self._moved[name, device]


def _frozen_rows(active: Tensor) -> Tensor | None:
    """Return the indices of the rows that may not move; None if only a part of some row may, or rows are short."""
    if bool(active.all()):
        return torch.empty(0, dtype=torch.int64)
    if active.ndim == 1 and len(active) <= _SHORT:
        return (~active).nonzero().flatten()
    if active.ndim < 2 or active[0].numel() < _SHORTEST_ROW:
        return None
    rows = active.flatten(1)
    some = rows.any(1)
    return (~some).nonzero().flatten() if torch.equal(some, rows.all(1)) else None


_SHORTEST_ROW = 16
"""Entries of a row from which copying rows is faster than arithmetic on all entries."""
_SHORT = 4096
"""Entries of a bias or gain up to which two calls that copy entries are faster than the calls of the arithmetic."""


def _restore(now: Tensor, before: Tensor, active: Tensor) -> None:
    """Restore the bits of entries outside of a mask, in place."""
    if restore.takes(now, before, active):
        restore.restore_(now, before, active)
        return
    for bits, old, may_move in cached_parts(now, before, active.view(torch.int8)):
        moving = may_move.to(bits.dtype).neg_()  # all bits set, or none
        bits.bitwise_xor_(old).bitwise_and_(moving).bitwise_xor_(old)


def freeze_outside_mask(
    parameters: Mapping[str, Tensor], active: Mapping[str, Tensor] | None
) -> AbstractContextManager[None]:
    """Return a context that freezes the entries outside of `active`; None freezes nothing. See `FreezeOutsideMask`."""
    return nullcontext() if active is None else FreezeOutsideMask(parameters, active)


def _bits(tensor: Tensor) -> Tensor:
    """Return a view of the tensor as integers of the same width."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskedOptimizer(torch.optim.Optimizer):
    """Wrapper that makes any torch optimizer strict: a weight that none of the active tasks keeps does not move.

    Args:
        optimizer: optimizer to wrap, with any momentum and weight decay.
        masks: masks of the tasks.
        model: model whose parameters the masks name.

    Learning-rate schedulers, gradient scalers and `state_dict` read the wrapped optimizer's groups and state. A copy
    (`copy.deepcopy`, pickle) holds a copy of the model as well: copy both at once, as `deepcopy((model, optimizer))`.

    Examples:
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
        self._check_parameters()

    def _check_parameters(self) -> None:
        """Raise a ParameterError if the optimizer steps no parameter of the masks: it would train another model."""
        stepped = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        if self._parameters and not any(id(parameter) in stepped for parameter in self._parameters.values()):
            raise ParameterError(
                "MaskedOptimizer: the optimizer has none of the model's parameters that the masks cover, such as "
                f"{next(iter(self._parameters))!r}. Was it made for another model? Make it of `model.parameters()`."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without derived attributes, and without `step`, which schedulers wrap in the instance."""
        made = ("step", "_parameters", "_frozen", "_memory")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state as it is: torch's own method expects an optimizer with groups and hooks of its own."""
        self.__dict__.update(state)
        self.masks = state["_masks"]

    @property
    def masks(self) -> TaskMasks:
        """Masks in force; set new ones whenever they change."""
        return self._masks

    @masks.setter
    def masks(self, masks: TaskMasks) -> None:
        self._parameters = masks.check(self._model)
        self._masks = masks
        self._frozen: dict[tuple[str, ...], FreezeOutsideMask] = {}
        self._memory: dict[str, Tensor] = {}

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, task: str | Sequence[str] | None = None
    ) -> float | None:
        """Step, then restore the weights outside of the masks of `task` (one, several, or all by default)."""
        tasks = self._masks.tasks if task is None else (task,) if isinstance(task, str) else tuple(task)
        if tasks not in self._frozen:
            active = self._masks[tasks[0]] if len(tasks) == 1 else self._masks.union(tasks)
            self._frozen[tasks] = FreezeOutsideMask(self._parameters, active, self._memory)
        with self._frozen[tasks]:
            return self.optimizer.step(closure) if closure is not None else self.optimizer.step()

    step.hooked = True  # type: ignore[attr-defined]  # torch must not wrap it to call hooks, which the inner step calls

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        """Call a hook before every step of the wrapped optimizer."""
        return self.optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """Call a hook after every step of the wrapped optimizer, before weights are restored."""
        return self.optimizer.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook before the wrapped optimizer returns its state."""
        return self.optimizer.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook after the wrapped optimizer returned its state."""
        return self.optimizer.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook before the wrapped optimizer loads a state."""
        return self.optimizer.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        """Call a hook after the wrapped optimizer loaded a state."""
        return self.optimizer.register_load_state_dict_post_hook(hook, prepend)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Parameter groups of the wrapped optimizer."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """State of the wrapped optimizer by parameter."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Defaults of the wrapped optimizer."""
        return self.optimizer.defaults

    def __repr__(self) -> str:
        return f"MaskedOptimizer({self.optimizer!r})"
