"""Levels of shared and own experts, whose features separate step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from torch import nn
from typing_extensions import Doc, Unpack

from sparsemtl.architectures.gated import ExpertOptions, GatedExperts
from sparsemtl.architectures.gates import ExpertLayout
from sparsemtl.backbones.stages import stages_of
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class PLE(GatedExperts):
    """Progressive layered extraction: levels of `CGC`, the lower ones with a gate over all experts (Tang et al. 2020).

    The mixture of a task's gate is the input of the task's own experts and gate in the next level. The mixture of the
    shared gate, over all experts of all tasks, is the input of the next level's shared experts and shared gate.

    Args:
        encoder: a module that can be cut into stages (`backbones.stages`). The levels get its stages one after the
            other, and the experts of a level are copies of its part; so every path through the levels is a network
            like the encoder. Or a list with one module, or one function that returns a module, per level.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if there is no expert, or the encoder has too few stages; or if `fresh`, and a module of the
            encoder with parameters has no `reset_parameters`.

    Examples:
        >>> encoder = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU())
        >>> model = PLE(encoder, [Classification("a", 3), Regression("b")])
        >>> [level.pools["pool1"][0][0] for level in model.levels]
        [Linear(in_features=6, out_features=4, bias=True), Linear(in_features=4, out_features=2, bias=True)]
    """

    @validated
    def __init__(
        self,
        encoder: nn.Module | Sequence[nn.Module | Callable[[], nn.Module]],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        levels: Annotated[
            Count, Doc("Number of levels into which a module is cut; a list has its own number of levels.")
        ] = 2,
        shared_experts: Annotated[
            Natural, Doc("Number of experts per level that all tasks use; with 0 the tasks are independent.")
        ] = 1,
        **options: Unpack[ExpertOptions],
    ) -> None:
        listed = isinstance(encoder, (list, tuple, nn.ModuleList))
        makers = list(encoder) if listed else _cut(encoder, levels)  # type: ignore[arg-type]
        layout = ExpertLayout.one_pool(tasks, shared=shared_experts, per_task=options["task_experts"])
        width_from = None if listed else encoder
        super().__init__(makers, tasks, heads, layout, fresh=options["fresh"], width_from=width_from)  # type: ignore[arg-type]


def _cut(encoder: nn.Module, levels: int) -> list[nn.Module]:
    """Return the encoder in `levels` parts, with about the same number of stages with parameters in each.

    Raises:
        ParameterError: if the encoder has fewer stages.
    """
    body = encoder.body if isinstance(encoder, Stemmed) else encoder
    stages = list(stages_of(body).values())
    last = max((index for index, stage in enumerate(stages) if any(True for _ in stage.parameters())), default=0)
    stages[last:] = [nn.Sequential(*stages[last:])] if last + 1 < len(stages) else stages[last:]
    if len(stages) < levels:
        raise ParameterError(
            f"PLE with {levels} levels needs an encoder of at least {levels} stages, found {len(stages)}. "
            "Lower `levels`, take a deeper encoder, or give a list of modules, one a level."
        )
    bounds = [len(stages) * level // levels for level in range(levels + 1)]
    parts: list[nn.Module] = [_joined(stages[low:high]) for low, high in pairwise(bounds)]
    return [Stemmed(encoder.stem, parts[0]), *parts[1:]] if isinstance(encoder, Stemmed) else parts


def _joined(stages: Sequence[nn.Module]) -> nn.Module:
    """Return several stages as one stack of layers."""
    layers = [layer for stage in stages for layer in (stage if isinstance(stage, nn.Sequential) else [stage])]
    return nn.Sequential(*layers)
