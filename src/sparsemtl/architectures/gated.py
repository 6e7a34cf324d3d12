"""What MMoE, CGC, PLE and PBFS have in common: levels of experts and gates, and a head for every task."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn

from sparsemtl.architectures.experts import Maker, copies, vector_widths
from sparsemtl.architectures.gates import SHARED, Demand, Level, PoolMerge
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.networks.model import MultiTaskModel, heads_for
from sparsemtl.tasks.task import Task

GATES = ("gates", "shared_gate")


class GatedExperts(MultiTaskModel, abc.ABC):
    """Levels of experts, of which every task's gates choose. A model says which experts there are.

    Args:
        makers: what the experts of every level are made from.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        pools: pool -> the tasks that use its experts.
        per_pool: experts in every pool of every level.
        per_task: experts of every task's own in every level.
        merge: how a task's pools enter its gate.
        fresh: draw the weights of every expert but a level's first anew, if they are copies of a module.
        tells: tells the width of the last level's features; the first of its experts by default.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None,
        *,
        pools: Mapping[str, Sequence[str]],
        per_pool: int,
        per_task: int,
        merge: PoolMerge = "gate",
        fresh: bool,
        tells: nn.Module | None = None,
    ) -> None:
        super().__init__(tasks)
        self.stem, first = _without_stem(makers[0])
        self.levels = nn.ModuleList()
        reads: int | None = None
        for maker in [first, *makers[1:]]:
            experts = copies(maker, fresh=fresh)
            expert = next(experts)
            wanted, given = vector_widths(expert)
            level = Level(
                pools,
                list(self.tasks),
                chain([expert], experts),
                per_pool=per_pool,
                per_task=per_task,
                reads=reads if self.levels else wanted,
                shared_gate=bool(pools and per_pool) and len(self.levels) + 1 < len(makers),
                merge=merge,
            )
            self.levels.append(level)
            reads = given
        self.heads = heads_for(self.tasks, heads, dict.fromkeys(self.tasks, expert if tells is None else tells))

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the experts that the named tasks need, level by level, then their heads."""
        chosen = self.chosen(tasks)
        if not chosen:
            return {}
        if self.stem is not None:
            x = self.stem(x)
        inputs: dict[str, Any] = dict.fromkeys([*self.tasks, SHARED], x)
        for level, demand in self._demands(chosen):
            inputs = level(inputs, demand)
        return {task: self.heads[task](inputs[task]) for task in chosen}

    def _demands(self, tasks: Sequence[str]) -> list[tuple[Level, Demand]]:
        """The levels, lowest first, and what is wanted of each for some of the tasks."""
        demand = Demand(tuple(dict.fromkeys(tasks)))
        found: list[tuple[Level, Demand]] = []
        for level in reversed(cast("list[Level]", list(self.levels))):
            found.append((level, demand))
            demand = level.needs(demand)
        return found[::-1]

    def _used(self) -> dict[str, tuple[nn.Module, frozenset[str]]]:
        """Every part by name, and the tasks that use it."""
        users: dict[str, tuple[nn.Module, frozenset[str]]] = {}
        for task in self.tasks:
            for name, module in self._parts(task).items():
                earlier = users[name][1] if name in users else frozenset()
                users[name] = (module, earlier | {task})
        return users

    def _parts(self, task: str) -> dict[str, nn.Module]:
        """What runs for a task, by name."""
        parts = {"stem": self.stem} if self.stem is not None else {}
        for index, (level, demand) in enumerate(self._demands([task])):
            parts |= {f"levels.{index}.{name}": part for name, part in level.parts(demand).items()}
        return {**parts, f"heads.{task}": self.heads[task]}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """A pool serves its tasks; an expert of a task's own serves all below the top level, if there are pools."""
        tasks = {
            f"{prefix}.{name}": its_tasks
            for prefix, (part, its_tasks) in self._used().items()
            for name, _ in part.named_parameters()
        }
        return {name: tasks[name] for name, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """The pools, and the experts that serve several tasks."""
        return self._where(lambda kind, users: kind == "pools" or (kind == "experts" and len(users) > 1))

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """The stem, and the gates that serve several tasks."""
        return self._where(lambda kind, users: kind == "stem" or (kind in GATES and len(users) > 1))

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The task's head, gate and own experts."""
        self.check_task(task)
        return self._where(lambda kind, users: kind not in ("stem", "pools") and users == {task})

    def _where(self, holds: Callable[[str, frozenset[str]], bool]) -> dict[str, nn.Module]:
        return {name: module for name, (module, users) in self._used().items() if holds(_kind(name), users)}


def _kind(part: str) -> str:
    """What a part is by its name: `stem`, `heads`, or a level's `pools`, `experts`, `gates` or `shared_gate`."""
    words = part.split(".")
    return words[2] if words[0] == "levels" else words[0]


def _without_stem(maker: Maker) -> tuple[nn.Module | None, Maker]:
    """The stem of an encoder that has one, and what makes experts without it."""
    if isinstance(maker, Stemmed):
        return maker.stem, maker.body
    if isinstance(maker, nn.Module):
        return None, maker
    made = [maker()]
    stem = made[0].stem if isinstance(made[0], Stemmed) else None

    def body() -> nn.Module:
        encoder = made.pop() if made else maker()
        return encoder.body if isinstance(encoder, Stemmed) else encoder

    return stem, body
