"""Aggregation of the gradients of some tasks, which leaves an aggregator's state of the other tasks unchanged.

The matrix of gradients has one row per task. A task without a label has no gradient, and a row of zeros is neutral for
some aggregators only: for MGDA, the shortest vector in the convex hull of the gradients would become zero. Therefore
the aggregator reads the rows of the present tasks only, with the part of its state that belongs to them; afterwards
the state of all tasks is merged. An aggregator with a fixed number of rows, and a user's own, reads a row of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.balancing.task_states import has_gaps, per_task_attributes, task_states


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
    if bool(present.all()) and not has_gaps(module):
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
    states = task_states(module)
    befores = [state.restrict(needed) for state in states]
    try:
        yield
    except BaseException:
        for state, before in zip(states, befores, strict=True):
            state.restore(before)
        raise
    for state, before in zip(states, befores, strict=True):
        state.merge(before, needed, kept)


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
