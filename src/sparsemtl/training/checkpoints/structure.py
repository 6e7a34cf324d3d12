"""Checks of states that are read from a checkpoint: each has the form of this run's own state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sparsemtl.errors import CheckpointError, SparseMTLError
from sparsemtl.storage.tensor_checks import check_tensor, kind_of

_KERNELS = ("fused", "foreach")
"""Options of torch's optimizers that choose a kernel. A run goes on by the kernel of its checkpoint."""


@contextmanager
def reading(where: str, what: str = "the state of this run") -> Iterator[None]:
    """Raise errors inside the context, to which a wrong state may lead, as `CheckpointError`.

    Args:
        where: the file.
        what: expected content of the file.
    """
    try:
        yield
    except SparseMTLError as error:
        if where not in str(error):
            error.args = (f"{where}: {error}",)
        raise
    except Exception as error:  # a crafted state may lead any part to raise anything
        problem = f"{type(error).__name__}: {error}".split("\n")[0].rstrip(".")
        raise CheckpointError(f"{where} does not hold {what}: {problem}. Use another copy of it.") from error


def check_tensors(found: Any, own: Mapping[str, Tensor], where: str, what: str) -> None:
    """Check that weights read from a file can take the place of a module's.

    Args:
        found: what the file holds, by name.
        own: the module's tensors.
        where: the file.
        what: whose tensors they are, such as "the model".

    Raises:
        CheckpointError: naming the tensor that is missing, too many, of another type or shape, or not finite.
    """
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where}: expected the tensors of {what} by name, found {kind_of(found)}.")
    for name in [*own, *found]:
        if name not in found or name not in own:
            state = "missing" if name not in found else "unexpected"
            raise CheckpointError(f"{where}: {name!r} of {what} is {state}. Was it written for another model?")
        check_tensor(found[name], own[name], f"{where}: {name!r} of {what}")


def check_state(found: Any, own: Any, where: str) -> None:
    """Check that a part's state has the form of the part's own state before its first step.

    What the own state has is there, of the same kind; where the own state has None, nothing, or an empty collection,
    anything may have come since.

    Args:
        found: the state in the file.
        own: what the part's `state_dict` returns here.
        where: the file and the place in it, for messages.

    Raises:
        CheckpointError: naming the place, what was expected and what was found.
    """
    if own is None:
        return
    value: Any
    if isinstance(own, Tensor):
        if not isinstance(found, Tensor) or found.dtype != own.dtype or found.ndim != own.ndim:
            raise CheckpointError(f"{where}: expected {kind_of(own)}, found {kind_of(found)}.")
        return
    if not _is_of(found, _family(own)):
        raise CheckpointError(f"{where}: expected {kind_of(own)}, found {kind_of(found)}.")
    if isinstance(own, Mapping):
        for key, value in own.items():
            if key not in found:
                raise CheckpointError(f"{where}: {key!r} is missing.")
            check_state(found[key], value, f"{where}.{key}")
    elif isinstance(own, (list, tuple)) and len(own) == len(found):
        for number, (value, item) in enumerate(zip(found, own, strict=True)):
            check_state(value, item, f"{where}[{number}]")


def _is_of(value: Any, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and not (isinstance(value, bool) and bool not in types)


def _family(own: Any) -> tuple[type, ...]:
    """Return the types that may stand in place of a value of this type."""
    if isinstance(own, Mapping):
        return (Mapping,)
    if isinstance(own, (list, tuple)):
        return (list, tuple)
    if isinstance(own, bool):
        return (bool,)
    return (int, float) if isinstance(own, (int, float)) else (type(own),)


def check_optimizer(found: Any, optimizer: Optimizer, where: str) -> None:
    """Check an optimizer's state: groups and hyper-parameters as here, and moments that fit their parameters.

    Raises:
        CheckpointError: naming the place that does not fit.
    """
    check_state(found, {"state": {}, "param_groups": []}, where)
    _check_groups(found["param_groups"], optimizer.state_dict()["param_groups"], where)
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    names = [{str(name) for name in entry} for entry in found["state"].values() if isinstance(entry, Mapping)]
    if names and (odd := sorted(set().union(*names) - names[0].intersection(*names))):
        raise CheckpointError(f"{where}.state: {odd[0]!r} is there for some parameters and missing for others.")
    for index, entry in found["state"].items():
        if index not in parameters or not isinstance(entry, Mapping):
            raise CheckpointError(f"{where}.state: expected one mapping per parameter by number, found {index!r}.")
        for name, value in entry.items():
            _check_moment(value, parameters[index], f"{where}.state[{index}].{name}")


def _check_groups(groups: Sequence[Any], own: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raise unless groups have the hyper-parameters and the parameters of the optimizer's own."""
    if len(groups) != len(own):
        raise CheckpointError(f"{where} has {len(groups)} groups of parameters there, {len(own)} here.")
    for number, (group, whole) in enumerate(zip(groups, own, strict=True)):
        here = {key: value for key, value in whole.items() if key not in _KERNELS}
        check_state(group, here, f"{where}.param_groups[{number}]")
        if any(group.get(key) not in (None, False, True) for key in _KERNELS):
            raise CheckpointError(f"{where}.param_groups[{number}]: expected True, False or None for {_KERNELS}.")
        if list(group["params"]) != list(here["params"]):
            raise CheckpointError(f"{where}.param_groups[{number}] is about other parameters than here.")


def _check_moment(value: Any, parameter: Tensor, place: str) -> None:
    """Raise unless a value of an optimizer's state is a number, or finite floats of the shape of its parameter."""
    if not isinstance(value, Tensor):
        if value is not None and not isinstance(value, (bool, int, float)):
            raise CheckpointError(f"{place}: expected a tensor or a number, found {kind_of(value)}.")
        return
    if value.ndim and value.shape != parameter.shape:
        raise CheckpointError(f"{place} has shape {tuple(value.shape)}, its parameter another one.")
    if not value.is_floating_point() or not bool(value.isfinite().all()):
        raise CheckpointError(f"{place}: expected finite floats, found {kind_of(value)}.")
