"""Experts in pools of related tasks, beside every task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from torch import Tensor, nn

from sparsemtl.architectures.experts import Maker
from sparsemtl.architectures.gated import GatedExperts
from sparsemtl.architectures.gates import PoolMerge
from sparsemtl.architectures.pools import Pools, build_pools, given_pools, label_correlations
from sparsemtl.errors import ParameterError
from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.registry.parameters import Count, Natural, Positive, validated
from sparsemtl.tasks.task import Task


class PBFS(GatedExperts):
    """Pruning-based feature sharing's experts: `CGC` with shared experts in pools of related tasks (PBFS, 2022).

    A pool is used by the tasks whose labels correlate alike (Algorithm 1). With masks that every task has on its
    pools' weights, which are those that sharing methods prune, a task runs its own experts and its part of each of
    its pools (Eq. 6 to 9). With masks that keep everything and `pool_merge="gate"` a task computes what it does in a
    `CGC` whose shared experts are those of its pools.

    Args:
        encoder: a module, of which the experts are copies, or a function that makes one.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        labels: target -> training labels of all tasks on the same samples, from which pools are made; not needed if
            `pools` are given or there are fewer than three tasks.
        pools: the tasks of every pool, as `build_pools` makes them or anyone likes; a task may be in several pools
            or in none.
        alpha: by how much a pair's correlation may differ from the pool's mean for the pair to join, in (0, inf);
            the larger it is, the fewer pools there are.
        experts_per_pool: number of experts in every pool.
        task_experts: number of experts of every task's own.
        pool_merge: what a task's gate weighs beside its own experts: the `sum` of its pools' experts as the paper
            has it, or each of them (`gate`).
        fresh: draw the weights of every expert but the first anew; without, all begin as equals.

    Attributes:
        pools: the pools, which print as a table.
        correlations: of the labels that the pools were made from, (M, M); None if the pools were given.

    Raises:
        ParameterError: if pools name unknown tasks, or cannot be made.
        LabelError: if labels have no correlation, being all alike.

    Example:
        >>> tasks = [Regression("a"), Regression("b"), Regression("c")]
        >>> model = PBFS(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), tasks, pools=[["a", "b"], ["b", "c"]])
        >>> {task: gate.out_features for task, gate in model.levels[0].gates.items()}
        {'a': 2, 'b': 2, 'c': 2}
    """

    @validated
    def __init__(
        self,
        encoder: Maker,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        labels: Mapping[str, Tensor] | None = None,
        *,
        pools: Sequence[Sequence[str]] | None = None,
        alpha: Positive = 0.05,
        experts_per_pool: Count = 1,
        task_experts: Natural = 1,
        pool_merge: PoolMerge = "sum",
        fresh: bool = True,
    ) -> None:
        correlations = None if labels is None or pools is not None else label_correlations(tasks, labels)
        found = _pools(tasks, correlations, pools, alpha)
        super().__init__(
            [encoder],
            tasks,
            heads,
            pools=found.members,
            per_pool=experts_per_pool,
            per_task=task_experts,
            merge=pool_merge,
            fresh=fresh,
        )
        self.pools = found
        self.correlations = correlations

    def summary(self) -> dict[str, Any]:
        """The pools, and the correlations that they were made from."""
        found = zip(self.pools.members.items(), self.pools.factors, strict=True)
        return {
            "pools": {
                name: {"tasks": list(tasks), "similarity": factor if isfinite(factor) else None}
                for (name, tasks), factor in found
            },
            "correlations": None if self.correlations is None else self.correlations.tolist(),
        }

    def tables(self) -> tuple[SummaryTable, ...]:
        """Return the pools, and the correlations that they were made from."""
        caption = (
            "Pairs of tasks whose labels correlate alike share a pool of experts. Similarity is the mean over pairs."
        )
        found = zip(self.pools.members.items(), self.pools.factors, strict=True)
        rows = tuple((name, factor if isfinite(factor) else None, ", ".join(tasks)) for (name, tasks), factor in found)
        pools = SummaryTable("Pools of related tasks", ("pool", "similarity", "tasks"), rows, caption)
        if self.correlations is None:
            return (pools,)
        names = tuple(self.tasks)
        correlations = tuple((task, *row) for task, row in zip(names, self.correlations.tolist(), strict=True))
        return (
            pools,
            SummaryTable(
                "Correlation of the labels", ("task", *names), correlations, "On training data.", shaded=names
            ),
        )


def _pools(
    tasks: Sequence[Task],
    correlations: Tensor | None,
    pools: Sequence[Sequence[str]] | None,
    alpha: float,
) -> Pools:
    names = [task.name for task in tasks]
    if pools is not None:
        return pools if isinstance(pools, Pools) else given_pools(pools, names)
    if correlations is not None:
        return build_pools(correlations, alpha, names)
    if len(names) > 2:
        raise ParameterError(
            "PBFS makes pools from the training labels of its tasks. Give `labels`, or `pools`: "
            "build_pools(label_correlations(tasks, labels), alpha, names) makes them."
        )
    return Pools([names] if len(names) == 2 else [])
