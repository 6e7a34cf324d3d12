"""State of an aggregator per task: restricted to some tasks for a call, and merged with that of the others after it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sparsemtl.balancing.nash import BargainingState


@dataclass(frozen=True)
class PerTask:
    """Description of an attribute of an aggregator that has one entry per task.

    Attributes:
        axes: axes of length T.
        fresh: entry of a task that is present for the first time when other tasks have entries already: zero, or the
            mean of the other entries.
        simplex: True if the entries sum to 1. Those of some tasks are then scaled to sum to 1, and scaled back.
        secondary: True if the first task has no entry.
    """

    axes: tuple[int, ...] = (0,)
    fresh: Literal["zero", "mean"] = "mean"
    simplex: bool = False
    secondary: bool = False


@cache
def per_task_attributes() -> dict[type, dict[str, PerTask]]:
    """Return the attributes with one entry per task of each class of TorchJD that has such attributes."""
    from torchjd.aggregation import (
        ConstantWeighting,
        CRMOGMWeighting,
        ExcessMTLWeighting,
        GradDrop,
        GradVacWeighting,
        MoDoWeighting,
        PCDWeighting,
        SDMGradWeighting,
    )

    from sparsemtl.balancing.solved import KeptWeighting

    # TorchJD 0.18 offers `reset()` as the only public access to running averages, so these names are private ones.
    return {
        KeptWeighting: {"weights": PerTask()},
        ConstantWeighting: {"weights": PerTask()},
        CRMOGMWeighting: {"_lambda": PerTask(), "_initial_weights": PerTask()},
        ExcessMTLWeighting: {
            "_weights": PerTask(simplex=True),
            "_sq_grad_sum": PerTask(fresh="zero"),
            "_initial_w": PerTask(),
            "_warmup_w_sum": PerTask(),
        },
        GradDrop: {"leak": PerTask()},
        GradVacWeighting: {"_phi_t": PerTask(axes=(0, 1), fresh="zero")},
        MoDoWeighting: {"_lambda": PerTask(simplex=True)},
        PCDWeighting: {"_sq_norm_ema": PerTask(), "tau": PerTask(secondary=True)},
        SDMGradWeighting: {"_w": PerTask(simplex=True), "pref_vector": PerTask()},
    }


class TaskState(Protocol):
    """State per task of one part of an aggregator."""

    def restrict(self, needed: Tensor) -> Any:
        """Leave the entries of the needed tasks only; return the full state."""

    def merge(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """Set the full state `before`, with the current entries of the kept tasks."""

    def restore(self, before: Any) -> None:
        """Set the full state `before` without changes."""


@dataclass(frozen=True)
class _AttributeState:
    """State in an attribute that has one entry per task."""

    part: nn.Module
    name: str
    rule: PerTask

    def restrict(self, needed: Tensor) -> Any:
        """Leave the entries of the needed tasks only; return all entries."""
        before = getattr(self.part, self.name)
        if isinstance(before, Tensor):
            setattr(self.part, self.name, self._entries(before, self._indices(needed, before)))
        return before

    def merge(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """Set all entries `before`, with the current entries of the kept tasks."""
        found = getattr(self.part, self.name)
        if not isinstance(found, Tensor):
            return
        count = len(needed) - self.rule.secondary
        shape = [count if axis in self.rule.axes else size for axis, size in enumerate(found.shape)]
        fits = isinstance(before, Tensor) and list(before.shape) == shape and before.dtype == found.dtype
        merged = before.clone() if fits else self._empty(found, shape)
        inside, indices = self._indices(needed, found), self._indices(kept, found)
        if self.rule.simplex:
            found = found * merged[inside].sum()
        chosen = torch.isin(inside, indices).nonzero().flatten()
        merged[_block(indices, self.rule)] = found[_block(chosen, self.rule)]
        self.restore(merged)

    def restore(self, before: Any) -> None:
        """Set all entries."""
        setattr(self.part, self.name, before)

    def has_gaps(self) -> bool:
        """Return True if a task has no entry yet."""
        value = getattr(self.part, self.name)
        return self.rule.fresh == "mean" and isinstance(value, Tensor) and bool(value.isnan().any())

    def _entries(self, full: Tensor, indices: Tensor) -> Tensor:
        """Return the entries of some tasks; a missing entry is the mean of the others'."""
        known = full[~full.isnan()] if self.rule.fresh == "mean" else full
        found = full[_block(indices, self.rule)]
        if self.rule.fresh == "mean" and len(known):
            found = torch.where(found.isnan(), known.mean(), found)
        if self.rule.simplex:
            total = found.sum()
            found = torch.where(total > 0, found / total, 1.0 / len(found))
        return found

    def _empty(self, like: Tensor, shape: list[int]) -> Tensor:
        if self.rule.simplex:
            return like.new_full(shape, 1.0 / shape[0])
        return like.new_full(shape, 0.0 if self.rule.fresh == "zero" else torch.nan)

    def _indices(self, tasks: Tensor, like: Tensor) -> Tensor:
        return tasks[int(self.rule.secondary) :].nonzero().flatten().to(like.device)


@dataclass(frozen=True)
class _RowCount:
    """Number of rows of the last call, alone or first in a tuple; a part with another number starts again."""

    part: Any

    def restrict(self, needed: Tensor) -> Any:
        """Set the number of needed tasks; return the attribute's value before."""
        before = self.part._state_key
        self._set(int(needed.sum()))
        return before

    def merge(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """Set the number of all tasks."""
        self._set(len(needed))

    def restore(self, before: Any) -> None:
        """Set the attribute's value before."""
        self.part._state_key = before

    def _set(self, rows: int) -> None:
        key = self.part._state_key
        if key is not None:
            self.part._state_key = (rows, *key[1:]) if isinstance(key, tuple) else rows


def task_states(module: nn.Module) -> list[TaskState]:
    """Return the states per task of an aggregator's parts."""
    from torchjd.aggregation import NashMTL

    found: list[TaskState] = [*_attribute_states(module)]
    found += [_RowCount(part) for part in module.modules() if hasattr(part, "_state_key")]
    return found + [BargainingState(part) for part in module.modules() if isinstance(part, NashMTL)]


def _attribute_states(module: nn.Module) -> list[_AttributeState]:
    known = per_task_attributes()
    return [
        _AttributeState(part, name, rule)
        for part in module.modules()
        for kind, rules in known.items()
        if isinstance(part, kind)
        for name, rule in rules.items()
    ]


def has_gaps(module: nn.Module) -> bool:
    """Return True if a task has no entry yet in an attribute with one entry per task."""
    return any(state.has_gaps() for state in _attribute_states(module))


def _block(indices: Tensor, rule: PerTask) -> tuple[Tensor, ...]:
    """Return the index of some tasks along all axes of tasks."""
    return (indices,) if len(rule.axes) == 1 else (indices[:, None], indices[None, :])
