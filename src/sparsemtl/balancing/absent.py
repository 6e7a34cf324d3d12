"""Aggregation of the gradients of some tasks, while what an aggregator remembers of the others stays as it is.

Every task keeps its row of the matrix of gradients. A task without a label has none to give, and a row of zeros is
neutral for some aggregators only: the shortest vector in the convex hull of gradients (MGDA) would become zero. So the
aggregator sees the rows at hand, with the part of its memory that belongs to them; afterwards every task has its
memory at its place. An aggregator of a fixed number of rows, and a user's own, sees a row of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from sparsemtl.balancing.nash import Bargaining

Fresh = Literal["zero", "mean"]
"""What a task starts with that is seen for the first time when others are known: zero, or the mean of theirs."""


@dataclass(frozen=True)
class PerTask:
    """An attribute of a part of an aggregator that has an entry per task.

    Attributes:
        axes: its axes of length T.
        fresh: see `Fresh`.
        simplex: its entries sum to 1; those of some tasks are scaled to it, and back.
        secondary: it has an entry per task but the first.
    """

    axes: tuple[int, ...] = (0,)
    fresh: Fresh = "mean"
    simplex: bool = False
    secondary: bool = False


def per_task_attributes() -> dict[type, dict[str, PerTask]]:
    """Class of TorchJD -> its attributes that have an entry per task."""
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

    return {
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
        PCDWeighting: {"_sq_norm_ema": PerTask(), "_tau": PerTask(secondary=True)},
        SDMGradWeighting: {"_w": PerTask(simplex=True), "_pref_vector": PerTask()},
    }


def aggregate(module: nn.Module, rows: Tensor, present: Tensor) -> Tensor:
    """Combine the rows of the tasks at hand.

    Args:
        module: an aggregator of TorchJD, (T, P) -> (P,).
        rows: (T, P), the tasks' gradients; those of tasks that have none are not read.
        present: (T,), which tasks have one.
    """
    present = present.to(rows.device)
    call: Callable[[Tensor], Tensor] = module
    if bool(present.all()) and not _has_gaps(module):
        return call(rows)
    rows = torch.where(present[:, None], rows, 0.0)
    if not _leaves_out(module):
        return call(rows)
    needed = present.clone()
    if _has_primary(module):
        needed[0] = True  # with a gradient of zero: the others are secondary to this task, not to each other
    with restricted(module, needed, present):
        return call(rows[needed])


@contextmanager
def restricted(module: nn.Module, needed: Tensor, kept: Tensor) -> Iterator[None]:
    """Inside, an aggregator remembers some tasks alone; afterwards, every task has its memory at its place.

    Args:
        module: the aggregator.
        needed: (T,), the tasks that it remembers inside.
        kept: (T,), those of them that keep what it has learned of them inside.
    """
    memories = _memories(module)
    befores = [memory.take(needed) for memory in memories]
    try:
        yield
    except BaseException:
        for memory, before in zip(memories, befores, strict=True):
            memory.put(before)
        raise
    for memory, before in zip(memories, befores, strict=True):
        memory.give_back(before, needed, kept)


class Memory(Protocol):
    """What a part of an aggregator remembers of tasks."""

    def take(self, needed: Tensor) -> Any:
        """Leave the memory of some tasks alone; return the whole."""

    def give_back(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """Make it whole again, with what is new of the tasks that keep it."""

    def put(self, before: Any) -> None:
        """Put the whole back as it was."""


@dataclass(frozen=True)
class Entries:
    """An attribute of a part that has an entry per task."""

    part: nn.Module
    name: str
    rule: PerTask

    def take(self, needed: Tensor) -> Any:
        """See `Memory`."""
        before = getattr(self.part, self.name)
        if isinstance(before, Tensor):
            setattr(self.part, self.name, self._of(before, self._places(needed, before)))
        return before

    def give_back(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """See `Memory`."""
        found = getattr(self.part, self.name)
        if not isinstance(found, Tensor):
            return
        count = len(needed) - self.rule.secondary
        shape = [count if axis in self.rule.axes else size for axis, size in enumerate(found.shape)]
        fits = isinstance(before, Tensor) and list(before.shape) == shape and before.dtype == found.dtype
        whole = before.clone() if fits else self._empty(found, shape)
        inside, places = self._places(needed, found), self._places(kept, found)
        if self.rule.simplex:
            found = found * whole[inside].sum()
        chosen = torch.isin(inside, places).nonzero().flatten()
        whole[_block(places, self.rule)] = found[_block(chosen, self.rule)]
        self.put(whole)

    def put(self, before: Any) -> None:
        """See `Memory`."""
        setattr(self.part, self.name, before)

    def has_gaps(self) -> bool:
        """True if a task has no entry yet."""
        value = getattr(self.part, self.name)
        return self.rule.fresh == "mean" and isinstance(value, Tensor) and bool(value.isnan().any())

    def _of(self, whole: Tensor, places: Tensor) -> Tensor:
        """The entries of some tasks; those of none yet are the mean of the others'."""
        known = whole[~whole.isnan()] if self.rule.fresh == "mean" else whole
        found = whole[_block(places, self.rule)]
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

    def _places(self, tasks: Tensor, like: Tensor) -> Tensor:
        return tasks[int(self.rule.secondary) :].nonzero().flatten().to(like.device)


@dataclass(frozen=True)
class StateKey:
    """The number of rows that a part expects, alone or at the head of what it compares before it starts anew."""

    part: Any

    def take(self, needed: Tensor) -> Any:
        """See `Memory`."""
        before = self.part._state_key
        self._set(int(needed.sum()))
        return before

    def give_back(self, before: Any, needed: Tensor, kept: Tensor) -> None:
        """See `Memory`."""
        self._set(len(needed))

    def put(self, before: Any) -> None:
        """See `Memory`."""
        self.part._state_key = before

    def _set(self, rows: int) -> None:
        key = self.part._state_key
        if key is not None:
            self.part._state_key = (rows, *key[1:]) if isinstance(key, tuple) else rows


def _memories(module: nn.Module) -> list[Memory]:
    """Return what an aggregator's parts remember of tasks."""
    from torchjd.aggregation import NashMTL

    found: list[Memory] = [*_entries(module)]
    found += [StateKey(part) for part in module.modules() if hasattr(part, "_state_key")]
    return found + [Bargaining(part) for part in module.modules() if isinstance(part, NashMTL)]


def _entries(module: nn.Module) -> list[Entries]:
    known = per_task_attributes()
    return [
        Entries(part, name, rule)
        for part in module.modules()
        for kind, rules in known.items()
        if isinstance(part, kind)
        for name, rule in rules.items()
    ]


def _has_gaps(module: nn.Module) -> bool:
    return any(entries.has_gaps() for entries in _entries(module))


def _has_primary(module: nn.Module) -> bool:
    """True if the first task is another than the rest."""
    from torchjd.aggregation import PCDWeighting

    return any(isinstance(part, PCDWeighting) for part in module.modules())


def _leaves_out(module: nn.Module) -> bool:
    """True if rows of zeros are not neutral, and fewer rows are no harm."""
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
    parts = list(module.modules())
    foreign = any(type(part).__module__.partition(".")[0] != "torchjd" for part in parts)
    return not foreign and not any(isinstance(part, (KrumWeighting, TrimmedMean)) for part in parts)


def _block(places: Tensor, rule: PerTask) -> tuple[Tensor, ...]:
    """The index of some tasks along all axes of tasks."""
    return (places,) if len(rule.axes) == 1 else (places[:, None], places[None, :])
