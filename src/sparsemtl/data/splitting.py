"""Splits of samples, drawn by a seed of their own, never by the global random state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sparsemtl.errors import DataError, ParameterError


def shuffled(count: int, seed: int) -> Tensor:
    """Return the numbers 0 .. count - 1 in an order that depends on nothing but the seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def partition(count: int, shares: Sequence[float], *, seed: int) -> list[Tensor]:
    """Cut `count` shuffled samples into consecutive parts.

    Args:
        count: number of samples.
        shares: fraction of each part, above 0; they add up to 1.
        seed: of the order.

    Returns:
        indices of each part's samples: disjoint, together all of them.

    Raises:
        ParameterError: if the shares do not add up to 1, or one is not above 0.
        DataError: if there are too few samples for a part to get one.
    """
    _check_shares(shares)
    ends = [round(count * reached) for reached in accumulate(shares)]
    parts = list(shuffled(count, seed).tensor_split(ends[:-1]))
    if any(len(part) == 0 for part in parts):
        raise DataError(f"{count} samples are too few to be split {list(shares)}.")
    return parts


def by_class(labels: Tensor, shares: Sequence[float], *, seed: int) -> list[Tensor]:
    """Cut samples into parts as `by_classes` does, by one class per sample, shape (N,).

    Examples:
        >>> [rows.tolist() for rows in by_class(torch.tensor([0, 1, 0, 1, 0, 0]), [0.5, 0.5], seed=0)]
        [[0, 2, 3], [1, 4, 5]]
    """
    return by_classes([labels], shares, seed=seed)


def by_classes(labels: Sequence[Tensor], shares: Sequence[float], *, seed: int) -> list[Tensor]:
    """Cut samples into parts in which every class has its share, and the whole its own, as nearly as numbers allow.

    The samples are sorted by their classes, those of the task with the fewest first, and shuffled where all classes are
    the same; in this order every one goes to the part that is furthest behind its share.

    Args:
        labels: class of each sample by task, shape (N,) each; one below 0 is none.
        shares: fraction of each part, above 0; they add up to 1. The first part gets at least one sample of every class
            of every task.
        seed: of the order.

    Returns:
        indices of each part's samples, ascending: disjoint, together all of them.

    Raises:
        ParameterError: if the shares do not add up to 1, or one is not above 0.
    """
    _check_shares(shares)
    order = shuffled(len(labels[0]), seed)
    for of_task in sorted(labels, key=lambda of_task: len(of_task.unique()), reverse=True):
        order = order[of_task[order].argsort(stable=True)]
    parts = _dealt(len(order), shares)
    for of_task in labels:
        for label in of_task.unique():
            own = (of_task[order] == label).nonzero().squeeze(1)
            if label >= 0 and bool((parts[own] > 0).all()):
                parts[own[0]] = 0
    return [order[parts == part].sort().values for part in range(len(shares))]


_PERIOD = 10_000
"""Samples after which parts are dealt out in the same turns again."""


def _dealt(count: int, shares: Sequence[float]) -> Tensor:
    """Return the part that each of `count` samples goes to, shape (count,)."""
    given, dealt = [0] * len(shares), []
    for number in range(1, min(count, _PERIOD) + 1):
        behind = [round(share * number - got, 9) for share, got in zip(shares, given, strict=True)]
        part = behind.index(max(behind))
        given[part] += 1
        dealt.append(part)
    return torch.tensor(dealt).repeat(math.ceil(count / _PERIOD))[:count]


def _check_shares(shares: Sequence[float]) -> None:
    if any(share <= 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-9):
        raise ParameterError(f"the parts of a split must be above 0 and add up to 1, got {list(shares)}.")


def hold_out(count: int, validation: float, *, seed: int, train_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Hold out the last of the shuffled training samples for validation.

    Args:
        count: number of training samples.
        validation: fraction held out, in (0, 1).
        seed: of the order.
        train_size: use only so many for training, the first in the order; validation shrinks in proportion
            and stays at the end, so that the two never meet.

    Returns:
        indices of the training samples, indices of the validation samples.
    """
    train, held_out = partition(count, [1 - validation, validation], seed=seed)
    if train_size is None:
        return train, held_out
    if train_size > len(train):
        raise DataError(
            f"train_size={train_size} is too large: of {count} samples {len(held_out)} are held out for "
            f"validation ({validation:.4g}), which leaves {len(train)}."
        )
    return train[:train_size], held_out[-in_proportion(train_size, validation) :]


def in_proportion(train_size: int, validation: float) -> int:
    """Return the number of validation samples, at least one, beside `train_size` for this fraction of both."""
    return max(1, round(train_size * validation / (1 - validation)))
