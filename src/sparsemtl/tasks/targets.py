"""Labels of a task among the targets of a batch: of one target, or of several joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsemtl.errors import LabelError, ParameterError

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


def target_keys(task: str, target: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the keys of a task's labels; by default its name."""
    keys = (target or task,) if target is None or isinstance(target, str) else tuple(target)
    if not keys:
        raise ParameterError(f"task {task!r}: `target` is an empty sequence; expected at least one key.")
    return keys


def labels_among(task: Task, targets: Mapping[str, Any]) -> Any:
    """Return a task's labels among the targets of a batch, several targets joined along axis 1."""
    if len(task.targets) > 1:
        own = targets.get(task.name)
        if isinstance(own, Tensor):
            return own  # joined before
        targets = own if isinstance(own, Mapping) else targets
    for key in task.targets:
        if key not in targets:
            raise LabelError(f"task {task.name!r}: the batch has no target {key!r}, only {sorted(targets)}.")
    if len(task.targets) == 1:
        return targets[task.targets[0]]
    parts = [targets[key] for key in task.targets]
    for key, part in zip(task.targets, parts, strict=True):
        if not isinstance(part, Tensor) or part.ndim == 0:
            raise LabelError(f"task {task.name!r}: target {key!r} must be a tensor of shape (batch, ...).")
    columns = [part.unsqueeze(1) if part.ndim == 1 else part for part in parts]
    try:
        return torch.cat(columns, 1)
    except RuntimeError as error:
        shapes = {key: tuple(part.shape) for key, part in zip(task.targets, parts, strict=True)}
        raise LabelError(
            f"task {task.name!r}: its targets cannot be joined along axis 1; expected equal shapes but for that axis, "
            f"got {shapes}."
        ) from error
