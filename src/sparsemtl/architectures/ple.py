"""Levels of shared and own experts that separate step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import nn

from sparsemtl.architectures.gated import GatedExperts
from sparsemtl.backbones.stages import stages_of
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Natural, validated
from sparsemtl.tasks.task import Task


class PLE(GatedExperts):
    """Progressive layered extraction: levels of `CGC`, the lower ones with a gate over all experts (Tang et al. 2020).

    What a task's gate mixes is read by the task's own experts and gate of the next level, and what the shared gate
    mixes, of all experts of all tasks, by the next level's shared experts and gate.

    Args:
        encoder: a module that can be cut (`backbones.stages`): its stages are dealt out to the levels, whose experts
            are copies of their part, so that every path through the levels is a network like the encoder. Or a list
            of modules, or of functions that make one, one a level.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        levels: number of levels that a module is cut in; a list has its own number.
        shared_experts: number of experts in every level that all tasks use; with none, the tasks are independent.
        task_experts: number of experts of every task's own in every level.
        fresh: draw the weights of every expert but a level's first anew; without, a level's begin as equals.

    Raises:
        ParameterError: if there is no expert, or the encoder cannot be cut in so many parts or does not say how its
            weights are drawn.

    Example:
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
        levels: Count = 2,
        shared_experts: Natural = 1,
        task_experts: Natural = 1,
        fresh: bool = True,
    ) -> None:
        listed = isinstance(encoder, (list, tuple, nn.ModuleList))
        makers = list(encoder) if listed else _cut(encoder, levels)  # type: ignore[arg-type]
        super().__init__(
            makers,
            tasks,
            heads,
            pools={"pool1": [task.name for task in tasks]},
            per_pool=shared_experts,
            per_task=task_experts,
            fresh=fresh,
            tells=None if listed else encoder,  # type: ignore[arg-type]
        )


def _cut(encoder: nn.Module, levels: int) -> list[nn.Module]:
    """The encoder in so many parts, each of about as many of the stages that have parameters."""
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
    """Several stages as one stack of layers."""
    layers = [layer for stage in stages for layer in (stage if isinstance(stage, nn.Sequential) else [stage])]
    return nn.Sequential(*layers)
