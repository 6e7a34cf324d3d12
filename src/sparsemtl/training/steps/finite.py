"""Checks that gradients and weights are finite, before a step is taken or a checkpoint is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from sparsemtl.errors import NonFiniteError, NonFiniteLossError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.storage.tensor_checks import is_finite


def named_parameters(model: MultiTaskModel, **extra: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return everything that a run trains, by name.

    Args:
        model: the model.
        extra: name of an owner -> parameters of its own, numbered in messages.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for owner, parameters in extra.items():
        named.update({f"{owner} parameter {i}": p for i, p in enumerate(parameters)})
    return named


def check_gradient(parameters: Mapping[str, nn.Parameter], tasks: Sequence[str], where: str = "") -> None:
    """Raise if a step's gradient is not finite.

    Costs one sum over all gradients: if that is finite, so is every entry.

    Args:
        parameters: what the step moves, by name.
        tasks: the tasks whose gradient it is.
        where: the place in the run, for the message.

    Raises:
        NonFiniteError: naming tasks and parameters.
    """
    if isfinite(_total([_values(g) for p in parameters.values() if (g := p.grad) is not None])):
        return
    gradients = {name: _values(p.grad) for name, p in parameters.items() if p.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not is_finite(gradient)]
    if wrong:  # otherwise only the sum overflows
        raise NonFiniteError(
            f"the gradient of {_listed('task', tasks)} is NaN or infinite{_at(where)}, in "
            f"{_listed('parameter', wrong)}. The step was not taken. A smaller learning rate often helps; a loss that "
            "divides, or takes a root or logarithm, near zero has such gradients although it is finite."
        )


def check_norm(norm: Tensor, tasks: Sequence[str], where: str = "") -> None:
    """Raise if a norm that gradients were divided by overflowed, which makes all of them zero.

    Raises:
        NonFiniteError: naming the tasks.
    """
    if not bool(norm.isfinite()):
        raise NonFiniteError(
            f"the gradient of {_listed('task', tasks)} is so large{_at(where)} that its norm overflows and cannot be "
            "clipped. The step was not taken. A smaller learning rate often helps."
        )


def not_finite_loss(what: str, value: float, where: str = "", inputs: Iterable[Tensor] = ()) -> NonFiniteLossError:
    """Return the error for a loss or a weight of one that is not finite, before a step is taken on it.

    Args:
        what: beginning of the message, such as "the loss of task 'a'".
        value: the loss, or its weight.
        where: the place in the run.
        inputs: tensors of the batch that the model read.
    """
    remedy = "A smaller learning rate or `clip_norm` often helps."
    if not all(is_finite(x) for x in inputs if x.is_floating_point()):
        remedy = "The inputs of this batch hold NaN or infinity: replace such values, or leave these samples out."
    return NonFiniteLossError(f"{what} is {value}{_at(where)}. No step was taken on it. {remedy}")


def check_rows(rows: Tensor, tasks: Sequence[str], where: str = "") -> None:
    """Raise if a task's gradient is not finite, before the tasks' gradients are combined.

    Args:
        rows: gradients of the tasks with respect to the shared weights, (T, P).
        tasks: names of the tasks, in the order of the rows.
        where: the place in the run, for the message.

    Raises:
        NonFiniteError: naming the tasks.
    """
    if is_finite(rows):
        return
    wrong = [task for task, row in zip(tasks, rows, strict=True) if not is_finite(row)]
    raise NonFiniteError(
        f"the gradient of {_listed('task', wrong)} with respect to the shared weights is NaN or infinite"
        f"{_at(where)}. The step was not taken. A smaller learning rate often helps."
    )


@torch.no_grad()
def check_weights(parameters: Mapping[str, nn.Parameter], when: str) -> None:
    """Raise if a weight is not finite.

    Args:
        parameters: what is trained, by name.
        when: the moment, and what is kept, for the message.

    Raises:
        NonFiniteError: naming the parameters.
    """
    wrong = [name for name, p in parameters.items() if not is_finite(p)]
    if wrong:
        raise NonFiniteError(f"{_listed('parameter', wrong)}: NaN or infinite {when}. A smaller learning rate helps.")


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _total(tensors: Sequence[Tensor]) -> float:
    """Return a sum over all tensors, which is not finite if one of their entries is not."""
    small: list[Tensor] = []
    large: list[Tensor] = []
    for tensor in tensors:
        if tensor.is_cuda:
            return float(torch.stack(torch._foreach_norm(list(tensors))).sum())  # few kernels, one wait for the device
        (small if tensor.numel() <= _SMALL else large).append(tensor)
    if small:
        large.append(torch._utils._flatten_dense_tensors(small))
    return sum(tensor.sum().item() for tensor in large)


_SMALL = 2**14
"""Number of entries up to which copying a tensor takes less time than a call of its own."""


def _at(where: str) -> str:
    return f" at {where}" if where else ""


def _listed(kind: str, names: Sequence[str], count: int = 3) -> str:
    """Return "task 'a'" or "tasks 'a', 'b', 'c' and 4 others"."""
    shown = ", ".join(repr(name) for name in names[:count])
    more = f" and {len(names) - count} others" if len(names) > count else ""
    return f"{kind}{'s' if len(names) != 1 else ''} {shown}{more}"
