"""Experts and the gates that weigh them: one level of MMoE, CGC, PLE and PBFS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sparsemtl.architectures.experts import Reading, run_side_by_side
from sparsemtl.errors import ParameterError

SHARED = ""
"""Key of what the shared experts of a level read, beside the tasks' names."""

PoolMerge = Literal["sum", "gate"]
"""How a task's pools enter its gate: their experts' `sum` as one slot, or every expert of theirs with a slot."""


class Demand(NamedTuple):
    """What is wanted of a level.

    Attributes:
        tasks: tasks whose mixture is.
        shared: whether the mixture of all experts is, which the shared experts of the next level read.
    """

    tasks: tuple[str, ...]
    shared: bool = False


class Level(nn.Module):
    """Experts in pools that tasks share, experts of every task's own, and a gate for every task (Tang et al. 2020).

    A task's gate is a softmax over its own experts and those of its pools; it reads what the task's experts read.

    Args:
        members: pool -> the tasks that use it.
        tasks: names of all tasks.
        experts: gives one network after the other.
        per_pool: experts in every pool.
        per_task: experts of every task's own.
        reads: width of the flattened input; gates learn it from the first batch if it is None.
        shared_gate: also mix all experts, for the next level.
        merge: how a task's pools enter its gate.

    Raises:
        ParameterError: if a task has neither experts of its own nor a pool.
    """

    def __init__(
        self,
        members: Mapping[str, Sequence[str]],
        tasks: Sequence[str],
        experts: Iterator[nn.Module],
        *,
        per_pool: int,
        per_task: int,
        reads: int | None,
        shared_gate: bool = False,
        merge: PoolMerge = "gate",
    ) -> None:
        super().__init__()
        self.members = {pool: tuple(its_tasks) for pool, its_tasks in members.items()} if per_pool else {}
        self.merge = merge
        self.pools = nn.ModuleDict({pool: nn.ModuleList(islice(experts, per_pool)) for pool in self.members})
        own = tasks if per_task else ()
        self.experts = nn.ModuleDict({task: nn.ModuleList(islice(experts, per_task)) for task in own})
        slots = {task: per_task + self._pool_slots(task, per_pool) for task in tasks}
        for task, count in slots.items():
            if not count:
                raise ParameterError(f"task {task!r} has no expert: it has none of its own, and no shared ones.")
        self.gates = nn.ModuleDict({task: _gate(reads, count) for task, count in slots.items()})
        total = per_pool * len(self.pools) + per_task * len(self.experts)
        self.shared_gate = _gate(reads, total) if shared_gate else None

    def _pool_slots(self, task: str, per_pool: int) -> int:
        count = len(self.pools_of(task)) * per_pool
        return min(count, 1) if self.merge == "sum" else count

    def pools_of(self, task: str) -> tuple[str, ...]:
        """The pools that a task uses."""
        return tuple(pool for pool, members in self.members.items() if task in members)

    def needs(self, demand: Demand) -> Demand:
        """What must be there as input: the tasks' own, and that of the shared experts and gate."""
        own = tuple(self.gates) if demand.shared and self.experts else demand.tasks
        return Demand(own, demand.shared or any(self.pools_of(task) for task in demand.tasks))

    def parts(self, demand: Demand) -> dict[str, nn.Module]:
        """The modules that run for a demand, by name."""
        pools = [pool for pool, members in self.members.items() if demand.shared or {*members} & {*demand.tasks}]
        own = [task for task in (self.gates if demand.shared else demand.tasks) if task in self.experts]
        parts: dict[str, nn.Module] = {f"pools.{pool}": self.pools[pool] for pool in pools}
        parts |= {f"experts.{task}": self.experts[task] for task in own}
        parts |= {f"gates.{task}": self.gates[task] for task in demand.tasks}
        return parts | ({"shared_gate": self.shared_gate} if demand.shared and self.shared_gate is not None else {})

    def forward(self, inputs: Mapping[str, Any], demand: Demand) -> dict[str, Tensor]:
        """Mix the experts as demanded.

        Args:
            inputs: task, or `SHARED` -> what its experts and its gate read.
            demand: what to compute; nothing else is.

        Returns:
            task, or `SHARED` -> mixture (B, ...).
        """
        features, logits = self._run(inputs, self.parts(demand))
        mixtures = {task: mixed(self._slots(task, features), logits[f"gates.{task}"]) for task in demand.tasks}
        if demand.shared:
            everything = [feature for own in features.values() for feature in own]
            mixtures[SHARED] = mixed(everything, logits["shared_gate"])
        return mixtures

    def _run(
        self, inputs: Mapping[str, Any], parts: Mapping[str, nn.Module]
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """Features of every group of experts and logits of every gate, by the names of the parts."""
        readers: dict[int, dict[str, nn.Module]] = {}
        read: dict[int, Any] = {}
        for name, part in parts.items():
            kind, _, owner = name.partition(".")
            x = inputs[owner if kind in ("experts", "gates") else SHARED]
            read[id(x)] = x
            readers.setdefault(id(x), {})[name] = part
        readings = [Reading(read[key], *_sorted_out(own)) for key, own in readers.items()]
        found, answers = map(iter, run_side_by_side(readings))
        features: dict[str, list[Tensor]] = {}
        logits: dict[str, Tensor] = {}
        for own in readers.values():
            for name, part in own.items():
                if isinstance(part, nn.ModuleList):
                    features[name] = list(islice(found, len(part)))
                else:
                    logits[name] = next(answers)
        return {name: features[name] for name in parts if name in features}, logits

    def _slots(self, task: str, features: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """What a task's gate chooses from: its own experts first."""
        own = features.get(f"experts.{task}", [])
        pooled = [feature for pool in self.pools_of(task) for feature in features[f"pools.{pool}"]]
        if self.merge == "sum" and pooled:
            pooled = [reduce(torch.add, pooled)]
        return [*own, *pooled]


def _gate(reads: int | None, slots: int) -> nn.Linear:
    return nn.LazyLinear(slots, bias=False) if reads is None else nn.Linear(reads, slots, bias=False)


def _sorted_out(parts: Mapping[str, nn.Module]) -> tuple[list[nn.Module], list[Any]]:
    """Experts and gates."""
    experts = [expert for part in parts.values() if isinstance(part, nn.ModuleList) for expert in part]
    return experts, [part for part in parts.values() if not isinstance(part, nn.ModuleList)]


def mixed(features: Sequence[Tensor], logits: Tensor) -> Tensor:
    """The features' mean, weighted by the softmax of a gate's logits.

    Args:
        features: of every expert, (B, ...).
        logits: (B, experts).

    Raises:
        ParameterError: if the experts' features differ in shape, or are not as many as the logits.
    """
    shapes = {tuple(feature.shape) for feature in features}
    if len(shapes) > 1:
        raise ParameterError(f"experts must give features of one shape to be mixed, found {sorted(shapes)}.")
    weights = logits.t().softmax(0)  # over the outer axis, which is many times as fast
    stacked = torch.stack(list(features))
    return (weights.reshape(weights.shape + (1,) * (stacked.ndim - 2)) * stacked).sum(0)
