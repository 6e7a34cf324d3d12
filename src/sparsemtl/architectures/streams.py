"""What architectures have in common that run a network a task side by side and mix them between stages."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn

from sparsemtl.architectures.experts import Maker, copies
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel, check_owned, heads_for
from sparsemtl.tasks.task import Task

Mixer = Callable[[int, nn.Module], nn.Module]
"""Makes what mixes T streams behind a stage, for (T, the stage): a module from T features to T, in the tasks' order."""


class Streams(MultiTaskModel, abc.ABC):
    """A network a task, cut in stages, and a mixer behind some stages. A model says what mixes.

    Args:
        encoder: a module, of which every task gets a copy; a function that makes one; or task name -> module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        mixer: see `Mixer`.
        after: names of the parts of the encoder behind which streams are mixed; by default every stage with
            parameters, see `backbones.stages`.
        fresh: draw the weights of every copy but the first anew.

    Raises:
        ParameterError: if an encoder does not tell where it can be cut, has no part of such a name, or tasks share an
            encoder.
    """

    def __init__(
        self,
        encoder: Maker | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None,
        *,
        mixer: Mixer,
        after: Sequence[str] | None,
        fresh: bool,
    ) -> None:
        super().__init__(tasks)
        encoders = self._each(encoder, fresh=fresh)
        check_owned("encoders", encoders, self.tasks)
        self.encoders = nn.ModuleDict({task: encoders[task] for task in self.tasks})
        self.after = None if after is None else tuple(after)
        stages = stages_of(next(iter(encoders.values())), self.after)
        self.mixed = tuple(name for name, stage in stages.items() if self._mixes(name, stage))
        self.mixers = nn.ModuleList([mixer(len(self.tasks), stages[name]) for name in self.mixed])
        for task, own in encoders.items():
            if tuple(stages_of(own, self.after)) != tuple(stages):
                raise ParameterError(f"encoders: that of task {task!r} has other stages than the first task's.")
        self.heads = heads_for(self.tasks, heads, encoders)

    def _mixes(self, name: str, stage: nn.Module) -> bool:
        return any(True for _ in stage.parameters()) if self.after is None else name in self.after

    def _each(self, encoder: Maker | Mapping[str, nn.Module], *, fresh: bool) -> dict[str, nn.Module]:
        if isinstance(encoder, (Mapping, nn.ModuleDict)):
            for task in self.tasks:
                if task not in encoder:
                    raise ParameterError(f"encoders: task {task!r} has no encoder; found {sorted(encoder)}.")
            return dict(encoder.items())
        return dict(zip(self.tasks, islice(copies(encoder, fresh=fresh), len(self.tasks)), strict=True))

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run all networks up to the last mixer, then those of the named tasks, and their heads.

        Args:
            x: what all encoders read; or task name -> what its encoder reads, batches of one size.
            tasks: names of the tasks, all by default.
        """
        chosen = self.chosen(tasks)
        if not chosen:
            return {}
        mixers = dict(zip(self.mixed, self.mixers, strict=True))
        own = x if isinstance(x, Mapping) and x.keys() == self.tasks.keys() else dict.fromkeys(self.tasks, x)
        streams = {task: own[task] for task in (self.tasks if mixers else chosen)}
        stages = {task: stages_of(self.encoders[task], self.after) for task in streams}
        for name in next(iter(stages.values())):
            streams = {task: stages[task][name](features) for task, features in streams.items()}
            if name in mixers:
                streams = dict(zip(streams, mixers[name](list(streams.values())), strict=True))
                if name == self.mixed[-1]:
                    streams = {task: streams[task] for task in dict.fromkeys(chosen)}
        return {task: self.heads[task](streams[task]) for task in chosen}

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Everything up to the last mixer serves all tasks, what is behind it one."""
        everyone = frozenset(self.tasks)
        common = {*self.shared_parameters(), *self.unmasked_parameters()}
        return {n: everyone if n in common else frozenset({n.split(".")[1]}) for n, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """All encoders, up to the last mixer."""
        return {name: module for task in self.tasks for name, module in self._divided(task, mixed=True)}

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """The mixers."""
        return {f"mixers.{index}": mixer for index, mixer in enumerate(self.mixers)}

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The head, and what of the task's encoder is behind the last mixer."""
        self.check_task(task)
        return {**dict(self._divided(task, mixed=False)), f"heads.{task}": self.heads[task]}

    def _divided(self, task: str, *, mixed: bool) -> Iterator[tuple[str, nn.Module]]:
        """The largest modules of a task's encoder that lie before the last mixer, or behind it."""
        encoder = self.encoders[task]
        before: set[nn.Module] = set()
        stages = stages_of(encoder, self.after)
        last = list(stages).index(self.mixed[-1]) if self.mixed else -1
        for stage in list(stages.values())[: last + 1]:
            before.update(stage.modules())
        return largest_parts(f"encoders.{task}", encoder, lambda leaf: (leaf in before) == mixed)


def largest_parts(name: str, module: nn.Module, holds: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """The largest submodules all of whose layers with tensors are such, by name."""
    layers = [m for m in module.modules() if m._parameters or m._buffers]
    if layers and all(map(holds, layers)):
        yield name, module
    elif layers:
        for child, inner in module.named_children():
            yield from largest_parts(f"{name}.{child}", inner, holds)
