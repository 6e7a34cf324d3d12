"""Experts that all tasks share, mixed by one gate per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import nn
from typing_extensions import Doc

from sparsemtl.architectures.copies import Maker
from sparsemtl.architectures.gated import GatedExperts
from sparsemtl.architectures.gates import ExpertLayout
from sparsemtl.registry.parameters import Count, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class MMoE(GatedExperts):
    """Multi-gate mixture of experts: tasks share all experts, and each mixes them by its own gate (Ma et al. 2018).

    The head of task t reads the sum over experts e of softmax(W_t x)_e E_e(x). W_t has no bias and reads the flattened
    input x; if the encoder is a `Stemmed`, x is the output of its stem. Experts that are equal stacks of linear layers
    and activations run as one batched product.

    Args:
        encoder: a module to copy for every expert, or a function that returns a new module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if `fresh`, and a module of the encoder with parameters has no `reset_parameters`.

    Examples:
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
        experts: Annotated[Count, Doc("Number of experts.")] = 8,
        fresh: Annotated[
            bool,
            Doc(
                "Initialize the weights of every expert except the first anew; if false, all start equal, which suits "
                "a pretrained encoder."
            ),
        ] = True,
    ) -> None:
        layout = ExpertLayout.one_pool(tasks, shared=experts, per_task=0)
        super().__init__([encoder], tasks, heads, layout, fresh=fresh)
