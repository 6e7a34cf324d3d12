"""Losses of the user's own: a function or module, or several of them with weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.tasks.forward_errors import PLAIN, explain_loss

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of the user's own: outputs (N, ...) and labels (N, ...) of the labelled samples -> their mean, a scalar; or a
loss per sample (N,), or per label, whose mean over the known ones is taken."""


class OwnLosses:
    """Losses of one task, whose weighted sum is the task's loss.

    Args:
        task: name of the task, for messages.
        loss: a loss, or losses by name.
        weights: factor per named loss, 1 by default.

    Raises:
        ParameterError: if a loss cannot be called, or a weight belongs to none.
    """

    def __init__(self, task: str, loss: Any, weights: Mapping[str, float] | None) -> None:
        self._task = task
        self._named = isinstance(loss, (Mapping, nn.ModuleDict))
        self._losses: dict[str, Loss] = dict(loss.items()) if self._named else {"": loss}
        self._weights = dict(weights or {})
        if not self._losses:
            raise ParameterError(f"task {task!r}: `loss` is an empty mapping; expected at least one loss.")
        for name, one in self._losses.items():
            _check_loss(task, f"loss {name!r}" if name else "`loss`", one)
            if self._named and not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ParameterError(
                    f"task {task!r}: a loss's name has letters, digits, '_' and '-' only, got {name!r}."
                )
        for name in self._weights:
            if not self._named or name not in self._losses:
                raise ParameterError(f"task {task!r}: `loss_weights`: {unknown_name('loss', name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of several losses; empty if there is one."""
        return tuple(self._losses) if self._named else ()

    def modules(self) -> nn.Module | None:
        """Return the losses that are modules with parameters or buffers; None if there is none."""
        stateful = {name: loss for name, loss in self._losses.items() if _has_state(loss)}
        if not self._named:
            return stateful.get("")  # type: ignore[return-value]
        return nn.ModuleDict(stateful) if stateful else None  # type: ignore[arg-type]

    def means(self, task: Task, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return the mean of each loss over labelled samples, by name.

        Args:
            task: the task.
            output: outputs (N, ...) of labelled samples.
            label: their labels (N, ...).
        """
        return {name: _mean(task, loss, output, label) for name, loss in self._losses.items()}

    def total(self, means: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of means."""
        if not self._named:
            return means[""]
        return reduce(add, (self._weights.get(name, 1.0) * mean for name, mean in means.items()))


def _has_state(loss: object) -> bool:
    return isinstance(loss, nn.Module) and bool([*loss.parameters(), *loss.buffers()])


def _mean(task: Task, loss: Loss, output: Tensor, label: Tensor) -> Tensor:
    """Return the mean of a loss over the known labels, a scalar."""
    value = _called(task, loss, output, label)
    if not value.ndim:
        return value
    known = _known(task, value, output, label)
    if bool(known.all()):
        return value.mean()
    # NaN in a label must not reach the gradient of its output, which zero times NaN would.
    output = torch.where(task.known_outputs(label, output), output, output.detach())
    return torch.where(known, _called(task, loss, output, label), 0.0).sum() / known.sum()


def _called(task: Task, loss: Loss, output: Tensor, label: Tensor) -> Tensor:
    try:
        value = loss(output, label)
    except PLAIN as error:
        if type(error) not in PLAIN:
            raise
        raise explain_loss(task.name, error, output, label) from error
    if not isinstance(value, Tensor):
        raise ParameterError(
            f"task {task.name!r}: its loss must return a tensor, got {type(value).__name__}. Is it an instance?"
        )
    return value


def _known(task: Task, value: Tensor, output: Tensor, label: Tensor) -> Tensor:
    """Return which entries of a loss per sample or label belong to known labels, of the shape of the loss."""
    known = task.known(label)
    if value.shape == known.shape:
        return known
    if len(value) == value.numel() == len(label):
        return torch.ones_like(value, dtype=torch.bool)
    if value.shape == output.shape:
        return task.known_outputs(label, output).expand(output.shape)
    raise ParameterError(
        f"task {task.name!r}: its loss must be one number, or one per sample {(len(label),)} or label "
        f"{tuple(known.shape)}, got shape {tuple(value.shape)}."
    )


def _check_loss(task: str, what: str, loss: object) -> None:
    if isinstance(loss, type):
        raise ParameterError(
            f"task {task!r}: {what} is the class {loss.__name__}; pass an instance, {loss.__name__}()."
        )
    if not callable(loss):
        raise ParameterError(
            f"task {task!r}: {what} must be a function (outputs, labels) -> scalar, or a mapping name -> function, got "
            f"{type(loss).__name__}."
        )
