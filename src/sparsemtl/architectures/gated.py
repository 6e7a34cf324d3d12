"""Base of MMoE, CGC, PLE and PBFS: levels of experts and gates, and one head per task."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, cast

from torch import Tensor, nn
from typing_extensions import Doc, TypedDict

from sparsemtl.architectures.copies import Maker, copies
from sparsemtl.architectures.experts import vector_widths
from sparsemtl.architectures.gates import SHARED, ExpertLayout, Level, LevelOutputs
from sparsemtl.architectures.heads import heads_for
from sparsemtl.backbones.stemmed import Stemmed
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.registry.parameters import Default, Natural

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class ExpertOptions(TypedDict, total=False):
    """Options of architectures in which tasks have experts of their own."""

    task_experts: Annotated[Natural, Default(1), Doc("Number of experts of each task's own, per level.")]
    fresh: Annotated[
        bool,
        Default(True),
        Doc("Initialize the weights of every expert of a level except the first anew; if false, all start equal."),
    ]


class GatedExperts(MultiTaskModel, abc.ABC):
    """Base of architectures with levels of experts that one gate per task mixes.

    Args:
        makers: origin of the experts of each level.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        layout: number of experts in each level, and the tasks that use them.
        fresh: initialize the weights of every expert of a level except the first anew, if they are copies of a module.
        width_from: module whose attribute `out_features` or `num_features` is the width that heads read; by default
            the first expert of the last level.
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None,
        layout: ExpertLayout,
        *,
        fresh: bool,
        width_from: nn.Module | None = None,
    ) -> None:
        super().__init__(tasks)
        self.stem, first = _without_stem(makers[0])
        self.levels = nn.ModuleList()
        has_pools = bool(layout.pools and layout.per_pool)
        reads: int | None = None
        for maker in [first, *makers[1:]]:
            experts = copies(maker, fresh=fresh)
            expert = next(experts)
            input_width, output_width = vector_widths(expert)
            level = Level(
                layout,
                list(self.tasks),
                chain([expert], experts),
                reads=reads if self.levels else input_width,
                shared_gate=has_pools and len(self.levels) + 1 < len(makers),
            )
            self.levels.append(level)
            reads = output_width
        encoder = expert if width_from is None else width_from
        self.heads = heads_for(self.tasks, heads, dict.fromkeys(self.tasks, encoder))

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the experts that the named tasks use, level by level, then the tasks' heads."""
        chosen = self.chosen(tasks)
        if not chosen:
            return {}
        if self.stem is not None:
            x = self.stem(x)
        inputs: dict[str, Any] = dict.fromkeys([*self.tasks, SHARED], x)
        for level, outputs in self._level_outputs(chosen):
            inputs = level(inputs, outputs)
        return {task: self.heads[task](inputs[task]) for task in chosen}

    def _level_outputs(self, tasks: Sequence[str]) -> list[tuple[Level, LevelOutputs]]:
        """Return every level, lowest first, with the outputs of it that some tasks use."""
        outputs = LevelOutputs(tuple(dict.fromkeys(tasks)))
        found: list[tuple[Level, LevelOutputs]] = []
        for level in reversed(cast("list[Level]", list(self.levels))):
            found.append((level, outputs))
            outputs = level.needs(outputs)
        return found[::-1]

    def _users(self) -> dict[str, tuple[nn.Module, frozenset[str]]]:
        """Return every part by name, with the tasks that use it."""
        users: dict[str, tuple[nn.Module, frozenset[str]]] = {}
        for task in self.tasks:
            for name, module in self._parts(task).items():
                earlier = users[name][1] if name in users else frozenset()
                users[name] = (module, earlier | {task})
        return users

    def _parts(self, task: str) -> dict[str, nn.Module]:
        """Return the modules that a task uses, by name."""
        parts = {"stem": self.stem} if self.stem is not None else {}
        for index, (level, outputs) in enumerate(self._level_outputs([task])):
            parts |= {f"levels.{index}.{name}": part for name, part in level.parts(outputs).items()}
        return {**parts, f"heads.{task}": self.heads[task], **self.loss_modules(task)}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter.

        A pool belongs to its tasks. Below the top level, the own experts of one task serve all tasks if there are
        pools, because the shared gate mixes them.
        """
        tasks = {
            f"{prefix}.{name}": its_tasks
            for prefix, (part, its_tasks) in self._users().items()
            for name, _ in part.named_parameters()
        }
        return {name: tasks[name] for name, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the pools, and the experts that several tasks use."""
        return self._where(lambda kind, users: kind == "pools" or (kind == "experts" and len(users) > 1))

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the experts of one level; none if there are several levels, or a stem below them."""
        if len(self.levels) > 1 or self.stem is not None:
            return {}
        pools = self._where(lambda kind, users: kind in ("pools", "experts"))  # lists of experts, side by side
        return {f"{name}.{index}": expert for name, pool in pools.items() for index, expert in pool.named_children()}

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """Return the stem, and the gates that several tasks use."""
        return self._where(lambda kind, users: kind == "stem" or (kind in _GATES and len(users) > 1))

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head, gates and own experts."""
        self.check_task(task)
        return self._where(lambda kind, users: kind not in ("stem", "pools") and users == {task})

    def _where(self, holds: Callable[[str, frozenset[str]], bool]) -> dict[str, nn.Module]:
        return {name: module for name, (module, users) in self._users().items() if holds(_kind(name), users)}


_GATES = ("gates", "shared_gate")


def _kind(part: str) -> str:
    """Return the kind of a part: `stem`, `heads`, or a level's `pools`, `experts`, `gates` or `shared_gate`."""
    words = part.split(".")
    return words[2] if words[0] == "levels" else words[0]


def _without_stem(maker: Maker) -> tuple[nn.Module | None, Maker]:
    """Return the stem of an encoder that has one, and the origin of experts without it."""
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
