"""One level of MMoE, CGC, PLE and PBFS: experts, and the gates that mix them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sparsemtl.architectures.experts import InputGroup, run_side_by_side
from sparsemtl.errors import ParameterError

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

SHARED = ""
"""Key of the input and output of a level's shared experts, beside the tasks' names."""

PoolMerge = Literal["sum", "gate"]
"""Slots of a task's pools in its gate: `sum`, one slot for the sum of their experts; `gate`, one slot per expert."""


@dataclass(frozen=True)
class ExpertLayout:
    """Number of experts in a level, and the tasks that use them.

    Attributes:
        pools: name of every pool -> names of the tasks that use its experts.
        per_pool: number of experts in each pool.
        per_task: number of experts of each task's own.
        merge: slots of a task's pools in its gate, see `PoolMerge`.
    """

    pools: Mapping[str, Sequence[str]]
    per_pool: int
    per_task: int
    merge: PoolMerge = "gate"

    @classmethod
    def one_pool(cls, tasks: Iterable[Task], *, shared: int, per_task: int) -> ExpertLayout:
        """Return the layout with one pool, whose `shared` experts all tasks use."""
        return cls({"pool1": [task.name for task in tasks]}, shared, per_task)


class LevelOutputs(NamedTuple):
    """Outputs of a `Level` to compute.

    Attributes:
        tasks: names of the tasks whose mixture is returned.
        shared: also return the mixture of all experts, which is the input of the next level's shared experts.
    """

    tasks: tuple[str, ...]
    shared: bool = False


class Level(nn.Module):
    """Pools of shared experts, experts of each task's own, and one gate per task (Tang et al. 2020).

    A task's gate is a softmax over the task's own experts and those of its pools. It reads the same input as the
    task's own experts.

    Args:
        layout: number of experts, and the tasks that use them.
        tasks: names of all tasks.
        experts: yields the expert networks.
        reads: width of the flattened input; None if the gates infer it from the first batch.
        shared_gate: add a gate over all experts, whose mixture the next level's shared experts read.

    Raises:
        ParameterError: if a task has no expert.
    """

    def __init__(
        self,
        layout: ExpertLayout,
        tasks: Sequence[str],
        experts: Iterator[nn.Module],
        *,
        reads: int | None,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        per_pool, per_task = layout.per_pool, layout.per_task
        self.members = {pool: tuple(its_tasks) for pool, its_tasks in layout.pools.items()} if per_pool else {}
        self.merge = layout.merge
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
        """Return the names of the pools that a task uses."""
        return tuple(pool for pool, members in self.members.items() if task in members)

    def needs(self, outputs: LevelOutputs) -> LevelOutputs:
        """Return the outputs of the level below that these outputs are computed from."""
        own = tuple(self.gates) if outputs.shared and self.experts else outputs.tasks
        return LevelOutputs(own, outputs.shared or any(self.pools_of(task) for task in outputs.tasks))

    def parts(self, outputs: LevelOutputs) -> dict[str, nn.Module]:
        """Return the modules that compute these outputs, by name."""
        pools = [pool for pool, members in self.members.items() if outputs.shared or {*members} & {*outputs.tasks}]
        own = [task for task in (self.gates if outputs.shared else outputs.tasks) if task in self.experts]
        parts: dict[str, nn.Module] = {f"pools.{pool}": self.pools[pool] for pool in pools}
        parts |= {f"experts.{task}": self.experts[task] for task in own}
        parts |= {f"gates.{task}": self.gates[task] for task in outputs.tasks}
        return parts | ({"shared_gate": self.shared_gate} if outputs.shared and self.shared_gate is not None else {})

    def forward(self, inputs: Mapping[str, Any], outputs: LevelOutputs) -> dict[str, Tensor]:
        """Mix the experts.

        Args:
            inputs: name of a task, or `SHARED` -> input of its experts and its gate, (B, ...).
            outputs: mixtures to compute; nothing else is computed.

        Returns:
            name of a task, or `SHARED` -> mixture (B, ...).
        """
        features, logits = self._run(inputs, self.parts(outputs))
        mixtures = {task: mixed(self._slots(task, features), logits[f"gates.{task}"]) for task in outputs.tasks}
        if outputs.shared:
            everything = [stack for stacks in features.values() for stack in stacks]
            mixtures[SHARED] = mixed(everything, logits["shared_gate"])
        return mixtures

    def _run(
        self, inputs: Mapping[str, Any], parts: Mapping[str, nn.Module]
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        """Return the stacked features of every group of experts and the logits of every gate, by names of parts."""
        readers: dict[int, dict[str, nn.Module]] = {}
        read: dict[int, Any] = {}
        for name, part in parts.items():
            kind, _, owner = name.partition(".")
            x = inputs[owner if kind in ("experts", "gates") else SHARED]
            read[id(x)] = x
            readers.setdefault(id(x), {})[name] = part
        groups = [InputGroup(read[key], *_experts_and_gates(own)) for key, own in readers.items()]
        stacks, all_logits = run_side_by_side(groups)
        in_order = [(name, part) for own in readers.values() for name, part in own.items()]
        pools = {name: len(part) for name, part in in_order if isinstance(part, nn.ModuleList)}
        features = dict(zip(pools, _divided(stacks, list(pools.values())), strict=True))
        logits = dict(zip([name for name, _ in in_order if name not in pools], all_logits, strict=True))
        return {name: features[name] for name in parts if name in features}, logits

    def _slots(self, task: str, features: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """Return the stacked features that a task's gate mixes, those of the task's own experts first."""
        own = features.get(f"experts.{task}", [])
        pooled = [stack for pool in self.pools_of(task) for stack in features[f"pools.{pool}"]]
        if self.merge == "sum" and pooled:
            pooled = [reduce(torch.add, (feature for stack in pooled for feature in stack.unbind())).unsqueeze(0)]
        return [*own, *pooled]


def _divided(stacks: list[Tensor], counts: list[int]) -> list[list[Tensor]]:
    """Divide the features of all experts into those of groups of `counts` experts."""
    if len(stacks) == 1 and len(counts) > 1:
        return [[part] for part in stacks[0].split(counts)]
    in_order = iter(stacks)
    return [stacks] if len(counts) == 1 else [list(islice(in_order, count)) for count in counts]


def _gate(reads: int | None, slots: int) -> nn.Linear:
    return nn.LazyLinear(slots, bias=False) if reads is None else nn.Linear(reads, slots, bias=False)


def _experts_and_gates(parts: Mapping[str, nn.Module]) -> tuple[list[nn.Module], list[Any]]:
    experts = [expert for part in parts.values() if isinstance(part, nn.ModuleList) for expert in part]
    return experts, [part for part in parts.values() if not isinstance(part, nn.ModuleList)]


def mixed(stacks: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Return the mean of the experts' features, weighted by the softmax of a gate's logits, (B, ...).

    Args:
        stacks: features of the experts, (n, B, ...) each.
        logits: logits of the gate, (B, experts).

    Raises:
        ParameterError: if the experts' features differ in shape, or their number is not that of the logits.
    """
    if any(stack.shape[1:] != stacks[0].shape[1:] for stack in stacks[1:]):
        shapes = sorted({tuple(stack.shape[1:]) for stack in stacks})
        raise ParameterError(f"experts must give features of one shape to be mixed, found {shapes}.")
    weights = logits.t().softmax(0)  # a softmax over the outer axis is many times as fast
    stacked = stacks[0] if len(stacks) == 1 else torch.cat(list(stacks))
    return (weights.reshape(weights.shape + (1,) * (stacked.ndim - 2)) * stacked).sum(0)
