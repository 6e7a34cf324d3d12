"""Experts in pools of related tasks, beside experts of each task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.architectures.copies import Maker
from sparsemtl.architectures.gated import ExpertOptions, GatedExperts
from sparsemtl.architectures.gates import ExpertLayout, PoolMerge
from sparsemtl.architectures.pools import Pools, build_pools, given_pools, label_correlations
from sparsemtl.errors import ParameterError
from sparsemtl.networks.declarations import SummaryTable
from sparsemtl.registry.parameters import Count, Positive, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class PBFS(GatedExperts):
    """Experts of pruning-based feature sharing: `CGC` with shared experts in pools of related tasks (PBFS, 2022).

    Tasks whose labels correlate alike share a pool (Algorithm 1). A sharing method gives each task masks on the
    weights of its pools; the task then runs its own experts and its part of each of its pools (Eq. 6 to 9). With masks
    that keep everything and `pool_merge="gate"`, a task computes the same as in a `CGC` whose shared experts are those
    of the task's pools.

    Args:
        encoder: a module to copy for every expert, or a function that returns a new module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        labels: target -> training labels of all tasks on the same samples, from which the pools are made. Not needed
            if `pools` are given or there are fewer than three tasks.

    Attributes:
        pools: the pools; `print` shows them as a table.
        correlations: (M, M), correlations of the labels from which the pools were made; None if pools were given.

    Raises:
        ParameterError: if pools name unknown tasks, or neither labels nor pools are given.
        LabelError: if all labels of a task are equal, so that they have no correlation.

    Examples:
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
        pools: Annotated[
            Sequence[Sequence[str]] | None,
            Doc(
                "Names of the tasks in each pool, made by `build_pools` or by hand; a task may be in several pools or "
                "in none. By default they are made from the labels."
            ),
        ] = None,
        alpha: Annotated[
            Positive,
            Doc(
                "Largest difference between the correlation of a pair of tasks and the mean of a pool with which the "
                "pair joins the pool; the larger it is, the fewer pools there are."
            ),
        ] = 0.05,
        experts_per_pool: Annotated[Count, Doc("Number of experts in each pool.")] = 1,
        pool_merge: Annotated[
            PoolMerge,
            Doc(
                "Slots of the pools in a task's gate, beside the task's own experts: `sum`, one slot for the sum of "
                "their experts, as in the paper; `gate`, one slot per expert."
            ),
        ] = "sum",
        **options: Unpack[ExpertOptions],
    ) -> None:
        correlations = None if labels is None or pools is not None else label_correlations(tasks, labels)
        found = _pools(tasks, correlations, pools, alpha)
        layout = ExpertLayout(found.members, experts_per_pool, options["task_experts"], pool_merge)
        super().__init__([encoder], tasks, heads, layout, fresh=options["fresh"])
        self.pools = found
        self.correlations = correlations

    def summary(self) -> dict[str, Any]:
        """Return the pools, and the correlations that they were made from."""
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
            "PBFS makes pools from the training labels of its tasks, got none. Give `labels`, or `pools`: "
            "build_pools(label_correlations(tasks, labels), alpha, names) makes them."
        )
    return Pools([names] if len(names) == 2 else [])
