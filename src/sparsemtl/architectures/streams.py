"""Base of architectures with one network per task, whose features are mixed between stages."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from torch import Tensor, nn
from typing_extensions import Doc, TypedDict

from sparsemtl.architectures.copies import Maker, one_per_task
from sparsemtl.architectures.heads import check_owned, heads_for
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.registry.parameters import Default, Fraction, Positive

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

_Mixer = Callable[[int, nn.Module], nn.Module]
"""Function from the number of tasks T and a stage to the module that mixes the features after the stage: T features to
T, in the tasks' order."""

_Stages = Mapping[str, Mapping[str, nn.Module]]
"""Task -> name of a stage -> the stage."""


class StreamOptions(TypedDict, total=False):
    """Options of architectures with one network per task, mixed between stages."""

    after: Annotated[
        Sequence[str] | None,
        Default(None),
        Doc(
            "Names of the encoder's parts after which features are mixed. By default these are, in a stack, the layers "
            "with their activation, and in a residual network its stages."
        ),
    ]
    own: Annotated[
        Fraction,
        Default(0.9),
        Doc("Initial weight of a task's own features in their mixture; the other tasks share the rest to 1 equally."),
    ]
    lr_factor: Annotated[
        Positive, Default(1.0), Doc("Factor of the learning rate of the mixing weights; the papers have 100 to 1000.")
    ]
    fresh: Annotated[
        bool,
        Default(False),
        Doc(
            "Initialize the weights of every copy of a module except the first anew; if false, all copies start equal."
        ),
    ]


class Streams(MultiTaskModel, abc.ABC):
    """Base of architectures with one network per task, cut into stages, and a mixer after some of the stages.

    Args:
        encoder: a module to copy for every task; a function that returns a new module; or task name -> module.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        mixer: makes the mixer after a stage.
        after: names of the encoder's parts after which features are mixed; by default every stage with parameters,
            see `backbones.stages`.
        fresh: initialize the weights of every copy except the first anew.

    Raises:
        ParameterError: if an encoder cannot be cut, has no part of a name in `after`, or serves two tasks.
    """

    def __init__(
        self,
        encoder: Maker | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None,
        *,
        mixer: _Mixer,
        after: Sequence[str] | None,
        fresh: bool,
    ) -> None:
        super().__init__(tasks)
        encoders = one_per_task(encoder, self.tasks, fresh=fresh)
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

    def _inputs(self, x: Any) -> dict[str, Any]:
        """Return the input of each task's encoder."""
        per_task = isinstance(x, Mapping) and x.keys() == self.tasks.keys()
        return {task: x[task] for task in self.tasks} if per_task else dict.fromkeys(self.tasks, x)

    def _stages(self) -> dict[str, dict[str, nn.Module]]:
        return {task: stages_of(encoder, self.after) for task, encoder in self.encoders.items()}

    def _split(self, stages: Iterable[str]) -> tuple[list[str], list[str]]:
        """Return the names of the stages up to the last mixer, and of those after it."""
        names = list(stages)
        last = names.index(self.mixed[-1]) + 1 if self.mixed else 0
        return names[:last], names[last:]

    def _outputs(self, x: Any, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Run all networks up to the last mixer, then those of the chosen tasks, and their heads."""
        if not chosen:
            return {}
        stages = self._stages()
        _, rest = self._split(stages[chosen[0]])
        streams = self._mixed_features(x, stages)[0] if self.mixed else self._inputs(x)
        streams = {task: streams[task] for task in dict.fromkeys(chosen)}
        for name in rest:
            streams = {task: stages[task][name](features) for task, features in streams.items()}
        return {task: self.heads[task](streams[task]) for task in chosen}

    def _mixed_features(self, x: Any, stages: _Stages) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
        """Run all networks up to the last mixer.

        Returns:
            task -> features after the last mixer; task -> features after every mixer.
        """
        streams = self._inputs(x)
        mixers = dict(zip(self.mixed, self.mixers, strict=True))
        found: dict[str, list[Tensor]] = {task: [] for task in streams}
        for name in self._split(next(iter(stages.values())))[0]:
            streams = {task: stages[task][name](features) for task, features in streams.items()}
            if name in mixers:
                streams = dict(zip(streams, mixers[name](list(streams.values())), strict=True))
                for task, features in streams.items():
                    found[task].append(features)
        return streams, found

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter: all tasks up to the last mixer, one task after it."""
        everyone = frozenset(self.tasks)
        common = {*self.shared_parameters(), *self.unmasked_parameters()}
        return {n: everyone if n in common else frozenset({n.split(".")[1]}) for n, _ in self.named_parameters()}

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the parts of all encoders up to the last mixer."""
        return {name: module for task in self.tasks for name, module in self._encoder_parts(task, mixed=True)}

    def encoder_modules(self) -> dict[str, nn.Module]:
        """Return the whole encoder of every task."""
        return {f"encoders.{task}": encoder for task, encoder in self.encoders.items()}

    def unmasked_modules(self) -> dict[str, nn.Module]:
        """Return the mixers."""
        return {f"mixers.{index}": mixer for index, mixer in enumerate(self.mixers)}

    def _own_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head, and the parts of its encoder after the last mixer."""
        self.check_task(task)
        own = {**dict(self._encoder_parts(task, mixed=False)), f"heads.{task}": self.heads[task]}
        return {**own, **self.loss_modules(task)}

    def _encoder_parts(self, task: str, *, mixed: bool) -> Iterator[tuple[str, nn.Module]]:
        """Yield the largest modules of a task's encoder that lie before the last mixer, or after it."""
        encoder = self.encoders[task]
        stages = stages_of(encoder, self.after)
        before = {module for name in self._split(stages)[0] for module in stages[name].modules()}
        return largest_parts(f"encoders.{task}", encoder, lambda layer: (layer in before) == mixed)


def largest_parts(name: str, module: nn.Module, holds: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the largest submodules in which `holds` is true for every layer with tensors, by name."""
    layers = [m for m in module.modules() if m._parameters or m._buffers]
    if layers and all(map(holds, layers)):
        yield name, module
    elif layers:
        for child, inner in module.named_children():
            yield from largest_parts(f"{name}.{child}", inner, holds)
