"""Adam, AdamW and SGD by torch's fused kernels, made right for every layout of memory.

A fused kernel on the CPU walks over parameter, gradient and state in the order of their memory. If one of them has
another layout than the parameter, the result is wrong without an error. That of SGD also raises an error if some
parameters get their first gradient later than others. A hook before every step prevents both: it converts what has
another layout, and returns groups for which there is no conversion to torch's general path.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class _Guarded(Optimizer):
    """Base of optimizers whose copies, and loaded states, are guarded too."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _drop_unsupported(self)
        guard(self)


class Adam(_Guarded, torch.optim.Adam):
    """Adam of torch, for `use_fused`."""


class AdamW(_Guarded, torch.optim.AdamW):
    """AdamW of torch, for `use_fused`."""


class SGD(_Guarded, torch.optim.SGD):
    """SGD of torch, for `use_fused`."""


def use_fused(optimizer: AnyOptimizer) -> AnyOptimizer:
    """Return the optimizer, of whose groups those use torch's fused kernel that hold only parameters it supports.

    A state from before, or from elsewhere, decides for the groups that it is loaded into: a run goes on by the kernel
    that it began with, unless the kernel is not supported here.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
    _drop_unsupported(optimizer)
    guard(optimizer)
    return optimizer


def guard(optimizer: Optimizer) -> None:
    """Make the steps of fused groups right for every layout of memory; an optimizer without such groups stays as it is.

    Gradient scalers then divide the gradients themselves and leave out whole steps, as without a fused kernel, so that
    hooks run after steps that were taken, and gradients can be clipped.
    """
    if not any(group.get("fused") for group in optimizer.param_groups):
        return
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if "_aligned" not in optimizer.__dict__:
        optimizer.register_step_pre_hook(_before_step)
    optimizer._aligned = {}  # type: ignore[attr-defined]


def _drop_unsupported(optimizer: Optimizer) -> None:
    """Return groups with a parameter that the fused kernel does not support to the general path."""
    kind = next(base for base in type(optimizer).__mro__ if base.__module__.startswith("torch.optim."))
    for group in optimizer.param_groups:
        if group["fused"] and not all(_is_supported(kind, p.device, p.dtype) for p in group["params"]):
            group["fused"] = None


@cache
def _is_supported(kind: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether trial steps of the fused kernel are those of the general path.

    That depends on the version of torch; in 2.13, SGD in half precision on the CPU loses its momentum.
    """
    options = {"momentum": 0.9} if issubclass(kind, torch.optim.SGD) else {}
    ends = []
    try:
        for fused in (None, True):
            parameter = nn.Parameter(torch.linspace(0.5, 1, 67, device=device, dtype=dtype))
            parameter.grad = parameter.detach().clone()
            optimizer = kind([parameter], lr=0.1, weight_decay=0.1, fused=fused, **options)
            for _ in range(3):
                optimizer.step()
            ends.append(parameter.detach())
    except (RuntimeError, TypeError):
        return False
    return bool(((ends[0] - ends[1]).abs() <= 16 * torch.finfo(dtype).eps).all())


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Align all memory before a step: at once, or after the closure that computes the gradients."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        _align(optimizer)
        return None

    def aligned() -> Any:
        loss = closure()
        _align(optimizer)
        return loss

    return (args[0], aligned), {}


def _align(optimizer: Optimizer) -> None:
    """Align what is not known to be aligned since the last step."""
    known: dict[Tensor, Any] = optimizer._aligned  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        if not group.get("fused"):
            continue
        for p in group["params"]:
            gradient = p.grad
            if gradient is None:
                continue
            state = optimizer.state[p]
            strided = gradient.layout is torch.strided
            if not strided or known.get(p) != (p.stride(), gradient.stride(), len(state)):
                if not strided or not _is_dense(p):
                    group["fused"] = None
                    break
                with torch.no_grad():
                    p.grad = _laid_out_as(gradient, p)
                    if group.get("momentum"):
                        state.setdefault("momentum_buffer", torch.zeros_like(p))
                    for key, value in state.items():
                        if isinstance(value, Tensor) and value.shape == p.shape:
                            state[key] = _laid_out_as(value, p)
                known[p] = (p.stride(), p.grad.stride(), len(state))


def _is_dense(p: Tensor) -> bool:
    """Return whether a tensor fills its memory without gaps and overlaps."""
    return p.is_contiguous() or _same_layout(torch.empty_like(p, device="meta"), p)


def _laid_out_as(tensor: Tensor, p: Tensor) -> Tensor:
    """Return the tensor in the layout of a dense one; itself if it has that layout already."""
    return tensor if _same_layout(tensor, p) else torch.empty_like(p, dtype=tensor.dtype).copy_(tensor)


def _same_layout(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape have the same strides, except along axes of length 1."""
    return all(size == 1 or a == b for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))
