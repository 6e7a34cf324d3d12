"""Aggregation of the gradients of some tasks, which leaves an aggregator's state of the other tasks unchanged.

The matrix of gradients has one row per task. A task without a label has no gradient, and a row of zeros is neutral for
some aggregators only: for MGDA, the shortest vector in the convex hull of the gradients would become zero. Therefore
the aggregator reads the rows of the present tasks only, with the part of its state that belongs to them; afterwards
the state of all tasks is merged. An aggregator with a fixed number of rows, and a user's own, reads a row of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def aggregate(module: nn.Module, rows: Tensor, present: Tensor) -> Tensor:
    """Combine the gradients of the present tasks into one (P,).

    Args:
        module: an aggregator of TorchJD, (T, P) -> (P,).
        rows: gradients (T, P), one row per task; rows of absent tasks are not read.
        present: bool (T,), True for tasks that have a gradient.
    """
    return _of_present(module, module, rows, present)[0]


def row_weights(module: nn.Module, rows: Tensor, present: Tensor) -> Tensor:
    """Return the factors (T,) with which an aggregator adds the gradients; zero for absent tasks.

    Args:
        module: a `torchjd.aggregation.WeightedAggregator`.
        rows: gradients (T, P), as for `aggregate`.
        present: bool (T,), as for `aggregate`.
    """
    weighting: Any = module.weighting
    weights, read = _of_present(module, weighting, rows, present)
    full = rows.new_zeros(len(rows))
    full[read] = weights.to(full)
    return full


def gramian_weights(module: nn.Module, gramian: Tensor, present: Tensor) -> Tensor:
    """Return the factors (T,) with which an aggregator adds gradients; zero for absent tasks.

    Args:
        module: a `torchjd.aggregation.GramianWeightedAggregator`.
        gramian: inner products (T, T) of the gradients; rows and columns of absent tasks are not read.
        present: bool (T,), as for `aggregate`.
    """
    weighting: Any = module.gramian_weighting
    weights, read = _of_present(module, weighting, gramian, present, square=True)
    full = gramian.new_zeros(len(gramian))
    full[read] = weights.to(full)
    return full


def _of_present(
    module: nn.Module, call: Callable[[Tensor], Tensor], rows: Tensor, present: Tensor, *, square: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the result of a call for the rows that are read, and which these are, bool (T,).

    With `square`, the columns belong to the tasks, too.
    """
    present = present.to(rows.device)
    everybody = torch.ones_like(present)
    if _is_foreign(module):
        rows = rows.clone()  # it may keep the rows, whose memory the next step uses again
    if bool(present.all()) and not _has_gaps(module):
        return call(rows), everybody
    rows = torch.where(present[:, None] & present if square else present[:, None], rows, 0.0)
    if not _takes_fewer_rows(module):
        return call(rows), everybody
    needed = present.clone()
    if _has_primary(module):
        needed[0] = True  # with a gradient of zero: the other tasks are secondary to this task, not to each other
    with _restricted(module, needed, present):
        return call(rows[needed][:, needed] if square else rows[needed]), needed


@contextmanager
def _restricted(module: nn.Module, needed: Tensor, kept: Tensor) -> Iterator[None]:
    """Restrict an aggregator's state to some tasks inside the context, and merge it with that of the others after it.

    Args:
        module: the aggregator.
        needed: bool (T,), True for tasks in the state inside the context.
        kept: bool (T,), True for the needed tasks whose entries are taken over from inside the context.
    """
    states = _task_states(module)
    befores = [state.restrict(needed) for state in states]
    try:
        yield
    except BaseException:
        for state, before in zip(states, befores, strict=True):
            state.restore(before)
        raise
    for state, before in zip(states, befores, strict=True):
        state.merge(before, needed, kept)


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


def _task_states(module: nn.Module) -> list[TaskState]:
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


def _has_gaps(module: nn.Module) -> bool:
    return any(state.has_gaps() for state in _attribute_states(module))


def _has_primary(module: nn.Module) -> bool:
    """Return True if the aggregator treats the first task differently from the rest."""
    from torchjd.aggregation import PCDWeighting

    return any(isinstance(part, PCDWeighting) for part in module.modules())


def _takes_fewer_rows(module: nn.Module) -> bool:
    """Return True if rows of zeros are not neutral, and the aggregator accepts fewer rows."""
    from torchjd.aggregation import (
        ConstantWeighting,
        KrumWeighting,
        MeanWeighting,
        SumWeighting,
        TrimmedMean,
        WeightedAggregator,
    )

    if isinstance(module, WeightedAggregator) and isinstance(
        module.weighting, (ConstantWeighting, MeanWeighting, SumWeighting)
    ):
        return False
    fixed = any(isinstance(part, (KrumWeighting, TrimmedMean)) for part in module.modules())
    return not fixed and not _is_foreign(module) and not _has_unknown_state(module)


def _has_unknown_state(module: nn.Module) -> bool:
    """Return True if a part keeps a state whose entries per task are not known, as in a newer TorchJD."""
    from torchjd import Stateful
    from torchjd.aggregation import NashMTL

    known = (NashMTL, *per_task_attributes())
    stateful = (part for part in module.modules() if isinstance(part, Stateful))
    return any(not any(isinstance(inner, known) for inner in part.modules()) for part in stateful)


def _is_foreign(module: nn.Module) -> bool:
    """Return True if a part of the aggregator is neither of TorchJD nor of this package."""
    return any(type(part).__module__.partition(".")[0] not in ("torchjd", "sparsemtl") for part in module.modules())


def _block(indices: Tensor, rule: PerTask) -> tuple[Tensor, ...]:
    """Return the index of some tasks along all axes of tasks."""
    return (indices,) if len(rule.axes) == 1 else (indices[:, None], indices[None, :])
