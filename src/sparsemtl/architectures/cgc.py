"""Shared experts beside experts of each task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from torch import nn
from typing_extensions import Doc, Unpack

from sparsemtl.architectures.copies import Maker
from sparsemtl.architectures.gated import ExpertOptions, GatedExperts
from sparsemtl.architectures.gates import ExpertLayout
from sparsemtl.registry.parameters import Natural, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class CGC(GatedExperts):
    """Customized gate control: a task's gate mixes the task's own experts and the shared ones (Tang et al. 2020).

    Gates are those of `MMoE`. Without experts of the tasks' own this is `MMoE`.

    Args:
        encoder: a module to copy for every expert, or a function that returns a new module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if there is no expert; or if `fresh`, and a module of the encoder with parameters has no
            `reset_parameters`.

    Examples:
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
        shared_experts: Annotated[
            Natural, Doc("Number of experts that all tasks use; with 0 the tasks are independent.")
        ] = 1,
        **options: Unpack[ExpertOptions],
    ) -> None:
        layout = ExpertLayout.one_pool(tasks, shared=shared_experts, per_task=options["task_experts"])
        super().__init__([encoder], tasks, heads, layout, fresh=options["fresh"])
