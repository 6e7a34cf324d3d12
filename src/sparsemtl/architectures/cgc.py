"""Shared experts beside every task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from sparsemtl.architectures.experts import Maker
from sparsemtl.architectures.gated import GatedExperts
from sparsemtl.registry.parameters import Natural, validated
from sparsemtl.tasks.task import Task


class CGC(GatedExperts):
    """Customised gate control: a task's gate mixes its own experts and those that all tasks share (Tang et al. 2020).

    Gates are those of `MMoE`, which this is without experts of tasks' own.

    Args:
        encoder: a module, of which the experts are copies, or a function that makes one.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        shared_experts: number of experts that all tasks use; with none, the tasks are independent.
        task_experts: number of experts of every task's own.
        fresh: draw the weights of every expert but the first anew; without, all begin as equals.

    Raises:
        ParameterError: if there is no expert, or the encoder does not say how its weights are drawn.

    Example:
        >>> model = CGC(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), [Classification("a", 3), Regression("b")])
        >>> model.levels[0].gates["b"]
        Linear(in_features=6, out_features=2, bias=False)
    """

    @validated
    def __init__(
        self,
        encoder: Maker,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        shared_experts: Natural = 1,
        task_experts: Natural = 1,
        fresh: bool = True,
    ) -> None:
        pools = {"pool1": [task.name for task in tasks]}
        super().__init__(
            [encoder], tasks, heads, pools=pools, per_pool=shared_experts, per_task=task_experts, fresh=fresh
        )
