"""One training batch through a model, task by task: shapes, loss, and the gradient on the shared weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.tasks.batches import Group
from sparsemtl.tasks.nests import to_device
from sparsemtl.training.steps.step import TrainingStep


@dataclass(frozen=True)
class TaskProbe:
    """One task on the first training batch.

    Attributes:
        task: name of the task.
        inputs: shape and dtype of the tensors of the input.
        features: the same of what the task's last module, its head, reads; "" if it has no module of its own.
        outputs: the same of the outputs.
        labels: number of labels of the batch: one per sample, position or value.
        known: number of known labels.
        loss: mean loss of the known labels; None if there is none.
        gradient_norm: Euclidean norm of the loss's gradient on the shared weights; None without a label, or if nothing
            is shared.
    """

    task: str
    inputs: str
    features: str
    outputs: str
    labels: int
    known: int
    loss: float | None
    gradient_norm: float | None


@dataclass(frozen=True)
class Probes:
    """All tasks on the first training batch.

    Attributes:
        tasks: one entry per task.
        cosines: (task, task) -> cosine of their gradients on the shared weights, in [-1, 1]; NaN if one of them is 0.
    """

    tasks: tuple[TaskProbe, ...]
    cosines: Mapping[tuple[str, str], float]


def probe_tasks(step: TrainingStep, groups: Sequence[Group]) -> Probes:
    """Run every task's network on a batch, forward and backward.

    Args:
        step: the training step; its networks and its backend run the model.
        groups: the batch, of every task.
    """
    probes: list[TaskProbe] = []
    gradients: dict[str, Tensor] = {}
    shared = {**step.model.shared_parameters(), **step.model.unmasked_parameters()}
    shared = {name: p for name, p in shared.items() if p.requires_grad}
    step.model.train()
    for group in groups:
        x = to_device(group.x, step.backend.device)
        for name in group.tasks:
            label = to_device(step.tasks[name].labels(group.targets), step.backend.device)
            with step.networks.swapped(step.model, name), _last_input(step.model, name) as read:
                output = step.backend.module(x, tasks=(name,))[name]
                known = step.tasks[name].known(label)
                loss = step.tasks[name].checked_loss(output, label) if bool(known.any()) else None
                if loss is not None and shared:
                    copies = {n: copy for task, n, copy in step.networks.copies() if task == name and n in shared}
                    gradients[name] = _gradient(loss, {**shared, **copies}, step.networks[name].gradient_mask)
            norm = float(gradients[name].norm()) if name in gradients else None
            features = described(read[-1]) if read else ""
            shapes = described(group.x), features, described(output)
            value = None if loss is None else float(loss.detach())
            probes.append(TaskProbe(name, *shapes, known.numel(), int(known.sum()), value, norm))
    order = {name: i for i, name in enumerate(step.tasks)}
    return Probes(tuple(sorted(probes, key=lambda probe: order[probe.task])), _cosines(gradients))


def _gradient(loss: Tensor, shared: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient on the shared weights as one vector; weights that the loss does not depend on have zeros."""
    found = torch.autograd.grad(loss, list(shared.values()), allow_unused=True) if loss.requires_grad else ()
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, shared.values(), strict=bool(found))]
    if not parts:
        return torch.zeros(1)
    for i, name in enumerate(shared):
        if name in mask:
            parts[i] = parts[i] * mask[name].to(parts[i].device)
    return torch.cat([part.detach().flatten().float() for part in parts])


def _cosines(gradients: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
    names = list(gradients)
    units = {name: gradient / gradient.norm() for name, gradient in gradients.items()}
    return {(a, b): float(units[a] @ units[b]) for i, a in enumerate(names) for b in names[i + 1 :]}


@contextmanager
def _last_input(model: MultiTaskModel, task: str) -> Iterator[list[Any]]:
    """Inside the context, append what each call of the task's own modules reads to a list."""
    read: list[Any] = []
    with ExitStack() as stack:
        for module in model.task_modules(task).values():
            hook = module.register_forward_pre_hook(partial(_append, read), with_kwargs=True)
            stack.callback(hook.remove)
        yield read


def _append(read: list[Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = [*args, *kwargs.values()]
    read.append(given[0] if len(given) == 1 else tuple(given))


def described(nest: Any) -> str:
    """Return a nest of tensors in words: `float32 (64, 1, 8, 8)`, or `input_ids int64 (8, 16), mask int64 (8, 16)`."""
    return ", ".join(f"{name} {form}".strip() for name, form in _leaves(nest, ""))


def _leaves(nest: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield path and form of every tensor; of any other object, its class."""
    parts: list[tuple[Any, Any]]
    if isinstance(nest, Tensor):
        yield name, f"{str(nest.dtype).removeprefix('torch.')} {tuple(nest.shape)}"
        return
    if isinstance(nest, Mapping):
        parts = list(nest.items())
    elif isinstance(nest, (tuple, list)):
        parts = list(zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True))
    elif is_dataclass(nest) and not isinstance(nest, type):
        parts = [(field.name, getattr(nest, field.name)) for field in fields(nest)]
    else:
        yield name, type(nest).__name__
        return
    for key, part in parts[:_MOST_PARTS]:
        yield from _leaves(part, f"{name}.{key}".lstrip("."))
    if len(parts) > _MOST_PARTS:
        yield name, f"and {len(parts) - _MOST_PARTS} more"


_MOST_PARTS = 6
"""Entries of a sequence or mapping that are described, such as the graphs of a batch."""
