"""Pools of related tasks, made from the correlations of their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan
from typing import overload

import torch
from torch import Tensor

from sparsemtl.errors import LabelError, ParameterError, unknown_name
from sparsemtl.tasks import Classification, MultiLabel, Regression, Task


class Pools(Sequence[tuple[str, ...]]):
    """Names of the tasks of every pool; `print` shows them as a table.

    Args:
        tasks: names of the tasks of every pool.
        factors: similarity factor (SMF, Eq. 5) of every pool, which is the mean correlation of its pairs; NaN if
            unknown, as by default.
    """

    def __init__(self, tasks: Sequence[Sequence[str]], factors: Sequence[float] | None = None) -> None:
        self._tasks = [tuple(its_tasks) for its_tasks in tasks]
        self.factors = [float("nan")] * len(self._tasks) if factors is None else list(factors)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, ...] | Sequence[tuple[str, ...]]:
        return self._tasks[index]

    def __len__(self) -> int:
        return len(self._tasks)

    def __repr__(self) -> str:
        known = not all(map(isnan, self.factors))
        return f"Pools({self._tasks}, {self.factors})" if known else f"Pools({self._tasks})"

    def __str__(self) -> str:
        width = max([4, *map(len, self.members)])
        rows = zip(self.members.items(), self.factors, strict=True)
        lines = [f"{name:<{width}}  {factor:>6.3f}  {', '.join(tasks)}" for (name, tasks), factor in rows]
        return "\n".join([f"{'pool':<{width}}  {'SMF':>6}  tasks", *lines])

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Names of the tasks of every pool, by the pool's name."""
        return {f"pool{number}": tasks for number, tasks in enumerate(self._tasks, 1)}


def build_pools(correlations: Tensor | Sequence[Sequence[float]], alpha: float, names: Sequence[str]) -> Pools:
    """Put pairs of tasks whose labels correlate alike into pools (PBFS, Algorithm 1).

    Pairs are visited in the order of the tasks. A pair joins the first pool whose similarity factor (SMF) differs from
    the pair's correlation by less than alpha. If there is no such pool, the pair makes a new one.

    Args:
        correlations: (M, M), correlations of the tasks' labels in [-1, 1]; only entries above the diagonal are read.
        alpha: largest difference, above zero.
        names: names of the tasks.

    Returns:
        the pools in the order in which they were made: no pool for one task, one pool for two.

    Raises:
        ParameterError: if the matrix does not have one row per task, or has entries that are not finite, or alpha is
            not above zero.

    Differences from the paper:
        - Eq. 5 sums over the pairs that joined the pool, and divides by the number of all pairs of the pool's tasks.
          We take all pairs in both places, so that a factor is a mean.

    Examples:
        >>> grades = [[1, 0.8521, 0.8015], [0.8521, 1, 0.9049], [0.8015, 0.9049, 1]]
        >>> print(build_pools(grades, 0.0515, ["G1", "G2", "G3"]))
        pool      SMF  tasks
        pool1   0.853  G1, G2, G3
        pool2   0.905  G2, G3
    """
    matrix = torch.as_tensor(correlations, dtype=torch.float64)
    if matrix.shape != (len(names), len(names)):
        raise ParameterError(
            f"{len(names)} tasks need a correlation matrix of shape ({len(names)}, {len(names)}), "
            f"got {tuple(matrix.shape)}."
        )
    if not alpha > 0:
        raise ParameterError(f"`alpha` must be above 0, got {alpha}.")
    if not bool(matrix.isfinite().all()):
        raise ParameterError("correlations must be numbers, found NaN or infinity.")
    rows: list[list[float]] = matrix.tolist()
    pools: list[set[int]] = []
    for i, j in combinations(range(len(names)), 2):
        pool = next((pool for pool in pools if abs(_factor(rows, pool) - rows[i][j]) < alpha), None)
        if pool is None:
            pools.append({i, j})
        else:
            pool |= {i, j}
    return Pools([[names[i] for i in sorted(pool)] for pool in pools], [_factor(rows, pool) for pool in pools])


def _factor(correlations: Sequence[Sequence[float]], pool: set[int]) -> float:
    pairs = [correlations[i][j] for i, j in combinations(sorted(pool), 2)]
    return sum(pairs) / len(pairs)


def given_pools(pools: Sequence[Sequence[str]], names: Sequence[str]) -> Pools:
    """Return pools that a user gave, after a check.

    Raises:
        ParameterError: if a pool has fewer than two tasks, a task twice, or an unknown task.
    """
    for number, tasks in enumerate(pools, 1):
        for task in tasks:
            if task not in names:
                raise ParameterError(f"pool {number}: {unknown_name('task', task, names)}")
        if len(tasks) < 2 or len(set(tasks)) < len(tasks):
            raise ParameterError(f"pool {number} must have two or more different tasks, got {list(tasks)}.")
    return Pools(pools)


def label_correlations(tasks: Sequence[Task], labels: Mapping[str, Tensor]) -> Tensor:
    """Return the correlation of every pair of tasks' labels, over the samples with a label for both.

    If both labels are one number (a real value, yes or no, or one of two classes as 0 or 1), this is Pearson's
    correlation. If a label is several numbers (more than two classes, several labels or values), it is the first
    canonical correlation: the largest Pearson correlation between a linear combination of the one label's numbers and
    one of the other's. It has no sign. For classes and a real value it is the correlation ratio.

    Args:
        tasks: classification, multi-label and regression tasks.
        labels: target -> labels of the same samples.

    Returns:
        the matrix (M, M), float64, in [-1, 1].

    Raises:
        ParameterError: if a task's labels are maps, for which pools must be given.
        LabelError: if labels are missing, of other samples, or all alike where another task has labels.

    Examples:
        >>> a, b = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1, 1, 0, 0])
        >>> label_correlations([Regression("a"), Classification("b", 2)], {"a": a, "b": b})
        tensor([[ 1.0000, -0.8944],
                [-0.8944,  1.0000]], dtype=torch.float64)
    """
    columns = {task.name: _columns(task, labels) for task in tasks}
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise LabelError(f"correlations need labels of the same samples for all tasks, found {counts}. Give `pools`.")
    matrix = torch.eye(len(tasks), dtype=torch.float64)
    for (i, one), (j, other) in combinations(enumerate(columns), 2):
        matrix[i, j] = matrix[j, i] = _correlation(one, columns[one], other, columns[other])
    return matrix


def _columns(task: Task, labels: Mapping[str, Tensor]) -> Tensor:
    """Return a task's labels as numbers (N, columns); NaN where a label is unknown."""
    if not isinstance(task, (Classification, MultiLabel, Regression)):
        raise ParameterError(
            f"task {task.name!r}: labels of a {type(task).__name__} are not numbers that could correlate. Give `pools`."
        )
    label = task.labels(labels)
    if not isinstance(task, Classification):
        return label.double()
    known = task.labelled(label)
    hot = torch.nn.functional.one_hot(label.where(known, 0), task.classes).double()[:, 1:]
    return hot.masked_fill(~known.unsqueeze(1), torch.nan)


def _correlation(one: str, a: Tensor, other: str, b: Tensor) -> float:
    known = ~(a.isnan().any(1) | b.isnan().any(1))
    if not bool(known.any()):
        raise LabelError(f"tasks {one!r} and {other!r} have no sample that is labelled for both. Give `pools`.")
    product = _orthonormal(one, a[known], other).T @ _orthonormal(other, b[known], one)
    largest = product[0, 0] if a.shape[1] == b.shape[1] == 1 else torch.linalg.matrix_norm(product, 2)
    return float(largest.clamp(-1, 1))


def _orthonormal(task: str, columns: Tensor, other: str) -> Tensor:
    """Return an orthonormal basis of the space of the centred columns; for one column, with its sign."""
    centred = columns - columns.mean(0)
    if columns.shape[1] == 1:
        length = centred.norm()
        rank = int(length > 1e-12 * columns.norm())
        basis = centred / length if rank else centred
    else:
        basis, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
        rank = int((sizes > 1e-10 * columns.norm()).sum())
        basis = basis[:, :rank]
    if not rank:
        raise LabelError(
            f"task {task!r}: all labels are equal on the samples that are labelled for {other!r}, so they have no "
            "correlation. Give `pools`, or leave the task out."
        )
    return basis
