"""Experts that all tasks share, weighed by every task for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from sparsemtl.architectures.experts import Maker
from sparsemtl.architectures.gated import GatedExperts
from sparsemtl.registry.parameters import Count, validated
from sparsemtl.tasks.task import Task


class MMoE(GatedExperts):
    """Multi-gate mixture of experts: every task mixes the same experts by a gate of its own (Ma et al. 2018).

    The head of task t reads the sum over experts e of softmax(W_t x)_e E_e(x); W_t has no bias and reads the input x
    flattened, behind the stem if the encoder is a `Stemmed`. Experts that are equal stacks of linear layers and
    activations run as one.

    Args:
        encoder: a module, of which the experts are copies, or a function that makes one.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        experts: number of experts.
        fresh: draw the weights of every expert but the first anew; without, all begin as equals, as experts should
            that were trained before.

    Raises:
        ParameterError: if the encoder does not say how its weights are drawn.

    Example:
        >>> model = MMoE(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), [Classification("a", 3), Regression("b")])
        >>> len(model.levels[0].pools["pool1"]), model.levels[0].gates["b"]
        (8, Linear(in_features=6, out_features=8, bias=False))
    """

    @validated
    def __init__(
        self,
        encoder: Maker,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        experts: Count = 8,
        fresh: bool = True,
    ) -> None:
        pools = {"pool1": [task.name for task in tasks]}
        super().__init__([encoder], tasks, heads, pools=pools, per_pool=experts, per_task=0, fresh=fresh)
