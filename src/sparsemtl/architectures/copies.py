"""Copies of an encoder: one per task, or one per expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy

from torch import nn
from torch.nn.utils import parametrize

from sparsemtl.errors import ParameterError

Maker = nn.Module | Callable[[], nn.Module]
"""Origin of copies: a module to copy, or a function that returns a new module."""


def one_per_task(
    encoder: Maker | Mapping[str, nn.Module], tasks: Iterable[str], *, fresh: bool = False
) -> dict[str, nn.Module]:
    """Return task name -> encoder.

    Args:
        encoder: a module to copy for every task; a function that returns a new module; or task name -> module.
        tasks: names of the tasks.
        fresh: initialize the weights of every copy of a module except the first anew.

    Raises:
        ParameterError: if a task is not among the names; or if `fresh`, and a module with parameters has no
            `reset_parameters`.
    """
    if not isinstance(encoder, (Mapping, nn.ModuleDict)):
        return dict(zip(tasks, copies(encoder, fresh=fresh), strict=False))
    for task in tasks:
        if task not in encoder:
            raise ParameterError(f"encoders: task {task!r} has no encoder; found {sorted(encoder)}.")
    return dict(encoder.items())


def copies(encoder: Maker, *, fresh: bool) -> Iterator[nn.Module]:
    """Yield networks without end.

    Args:
        encoder: a module to copy, or a function that returns a new module.
        fresh: initialize the weights of every copy except the first anew.

    Raises:
        ParameterError: if `fresh`, and a module with parameters has no `reset_parameters`.
    """
    if not isinstance(encoder, nn.Module):
        while True:
            yield encoder()
    yield deepcopy(encoder)
    while True:
        yield reinitialized(deepcopy(encoder)) if fresh else deepcopy(encoder)


def reinitialized(module: nn.Module) -> nn.Module:
    """Initialize a module's parameters anew, by the `reset_parameters` of the topmost modules that have one.

    Returns:
        the module itself.

    Raises:
        ParameterError: if a module with parameters has no `reset_parameters`, or its weights are parametrized.
    """
    if parametrize.is_parametrized(module):
        raise ParameterError(_CANNOT_RESET.format(f"{type(module).__name__}, whose weights are parametrized,"))
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return module
    if any(parameter is not None for parameter in module._parameters.values()):
        raise ParameterError(_CANNOT_RESET.format(f"{type(module).__name__}, which has no `reset_parameters`,"))
    for child in module.children():
        reinitialized(child)
    return module


_CANNOT_RESET = (
    "the weights of {} cannot be initialized anew for another copy. Give a function that returns a new network in "
    "place of the network, or start from equal copies with `fresh=False`."
)
