"""Small tasks that learn from one big network: each from a copy of it, aligned to it class by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from sparsemtl.architectures.damtl.alignment import Kernel
from sparsemtl.architectures.damtl.alignment_loss import Align, Alignable, make_reading
from sparsemtl.architectures.damtl.class_map import ClassMapping, classes_in_common
from sparsemtl.architectures.damtl.reference import LAST, Reference, Source, Tap, tapped
from sparsemtl.architectures.streams import largest_parts
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import LabelError, ParameterError, unknown_name
from sparsemtl.heads.linear import LinearHead
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.model import MultiTaskModel, heads_for
from sparsemtl.registry.parameters import Count, NonNegative, validated
from sparsemtl.tasks.task import Task

Weights = Literal["own", "shared", "frozen"]


class Auxiliary(MultiTaskModel):
    """Every task starts from a big network of many classes and is aligned to it (DAMTL; Feng & Chen, arXiv 2201.02305).

    The encoder is the auxiliary network, trained. Every task gets a copy of its fully connected layers, and a last
    layer made of its rows for the task's classes. With `sharing: soft-masks` every task has a non-negative mask over
    the convolutions. `penalty` is the alignment: summed over the fully connected layers and the classes in a batch, how
    far what the task's layer gives is from what the auxiliary network's gives. For inference the auxiliary network is
    not needed any more. In a configuration, `pretraining` trains the auxiliary network first.

    In the paper's own form (`weights: own`) nothing flows between the tasks once the auxiliary network is trained:
    training them together is training them apart. With `weights: shared` they truly share.

    Args:
        encoder: the auxiliary network without its last layer.
        tasks: the tasks.
        heads: task -> head, as in `SharedBottom`; one given here is neither made of rows nor aligned.
        source: what the encoder was trained for; without it, last layers start afresh and are not aligned.
        weights: `own`, every task trains a copy of the convolutions; `shared`, all tasks train the same ones;
            `frozen`, all tasks read them and nobody trains them.
        align: what is compared: `layer`, the layers, on the features of the task's network; `feature`, what the two
            networks' layers give of the same inputs; `classic`, what the auxiliary network's give of its own training
            samples and the task's of the task's; `none`, nothing.
        kernel: `linear` compares the classes' means, `rbf` their distributions by five Gaussian kernels.
        strength: factor of the alignment beside the task's loss, the paper's lambda_2.
        class_map: task -> class -> auxiliary class, null for one that has no counterpart, or for a task none of whose
            classes has; by default the class of the same name. Classes that have only numbers must be mapped, unless
            the auxiliary task has as many.
        layers: names of the encoder's fully connected layers; by default all its linear layers.
        bank: samples of every auxiliary class that `classic` compares with if the kernel is `rbf`; with `linear` it
            compares with the mean over all.
        remember: megabytes for the auxiliary network's answers, which `feature` computes once a sample.

    Raises:
        ParameterError: if a class has no counterpart, a task to align is no classification, or an encoder whose
            convolutions are to be shared does not tell its stages.

    Differences from the paper:
        - Eq. 3 leaves open what is compared. `layer` with a linear kernel is its literal reading, which then needs
          neither auxiliary data nor a pass through the auxiliary network.
        - There the auxiliary network knows all classes of all tasks; here a class may do without a counterpart.

    Example:
        >>> everything, pets = Classification("all", ["cat", "dog", "car"]), Classification("pets", ["dog", "cat"])
        >>> big = SharedBottom(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU()), [everything])
        >>> x, y = torch.rand(6, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> answers = big(x)["all"]  # and it should have been trained
        >>> model = Auxiliary(big.encoder, [pets], source=Source(everything, big.heads["all"]))
        >>> bool(torch.allclose(model(x)["pets"], answers[:, [1, 0]])), model.penalty("pets", y).item()
        (True, 0.0)
    """

    figures: ClassVar[tuple[Figure, ...]] = (
        Figure(
            "discrepancy",
            "Discrepancy from the auxiliary network",
            "per task, class by class over the aligned layers; mean over the epoch's batches, before its factor",
            higher_is_better=False,
        ),
    )

    @validated
    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        source: Source | None = None,
        *,
        weights: Weights = "own",
        align: Align = "layer",
        kernel: Kernel = "linear",
        strength: NonNegative = 0.9,
        class_map: Mapping[str, Mapping[str, Any] | None] | None = None,
        layers: Sequence[str] | None = None,
        bank: Count = 32,
        remember: NonNegative = 512.0,
    ) -> None:
        super().__init__(tasks)
        self.strength = strength
        connected = _fully_connected(encoder, layers)
        given = dict(heads or {})
        same = classes_in_common(self.tasks, source, class_map or {}, given)
        self.same = nn.ModuleDict(same)
        reference = Reference(encoder, connected, source.last if source is not None else None)
        alignable = Alignable(self.tasks, same, reference, source)
        asked = align if strength > 0 else "none"
        self.reading = make_reading(asked, kernel, alignable, bank=bank, megabytes=remember)
        trunk, top = (nn.Identity(), encoder) if weights == "own" else _cut(encoder, connected)
        places = {module: name for name, module in top.named_modules()}
        self.connected = {name: places[layer] for name, layer in connected.items()}
        self.trunk = Frozen(trunk) if weights == "frozen" else trunk
        self.encoders = nn.ModuleDict({task: deepcopy(top) for task in self.tasks})
        rows = {task: _rows_of(reference, classes) for task, classes in same.items()}
        self.heads = heads_for(self.tasks, {**rows, **given}, dict.fromkeys(self.tasks, encoder))
        self._taken: dict[str, tuple[Any, dict[str, Tap]]] = {}
        self.discrepancies = nn.ModuleDict({task: _Mean() for task in self.tasks})

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_taken": {}}  # a copy has seen no batch

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Every named task's network, and its head, on what the common part gives of the input."""
        chosen = self.chosen(tasks)
        if not chosen:
            return {}
        features = self.trunk(x)
        if self.reading is None or not self.training or not torch.is_grad_enabled():
            self._taken.clear()
            return {task: self.heads[task](self.encoders[task](features)) for task in chosen}
        outputs = {}
        for task in chosen:
            with tapped(self._tapped(task)) as taps:
                outputs[task] = self.heads[task](self.encoders[task](features))
            self._taken[task] = (x, taps)
        return outputs

    def _tapped(self, task: str) -> dict[str, nn.Module]:
        """The layers of a task that are aligned, by their names in the auxiliary network."""
        layers = {name: self.encoders[task].get_submodule(place) for name, place in self.connected.items()}
        return {**layers, LAST: self.heads[task]} if task in self.same else layers

    def penalty(self, task: str, target: Tensor) -> Tensor | None:
        """The alignment of the task's layers on the batch that it saw last in training, times `strength`.

        Args:
            task: the task.
            target: its classes of the batch (B,).

        Returns:
            a scalar; None if nothing is aligned, or the task has seen no batch in training since it was last asked.

        Raises:
            LabelError: if there are not as many classes as the batch has samples.
        """
        self.check_task(task)
        if self.reading is None or task not in self._taken:
            return None
        x, taps = self._taken.pop(task)
        same = self._counterparts(task)
        samples = len(next(iter(taps.values())).features)
        if len(target) != samples:
            raise LabelError(f"task {task!r}: expected the classes of the {samples} samples it saw, got {len(target)}.")
        if same is not None:
            taps[LAST] = taps[LAST].columns(same.own)
        classes = target.where(self.tasks[task].labelled(target), -1)
        discrepancy = self.reading(taps, x, classes, same)
        self._mean(task).add(discrepancy.detach())
        return cast("Tensor", self.strength * discrepancy)

    def _counterparts(self, task: str) -> ClassMapping | None:
        return cast("ClassMapping", self.same[task]) if task in self.same else None

    def _mean(self, task: str) -> _Mean:
        return cast("_Mean", self.discrepancies[task])

    def begin_epoch(self, epoch: int) -> None:
        """Begin a new mean of the discrepancies."""
        for task in self.tasks:
            self._mean(task).clear()

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Yield every task's mean discrepancy of the epoch, if it is aligned."""
        for task in self.tasks:
            if (mean := self._mean(task)).count:
                yield task, "discrepancy", float(mean.total / mean.count)

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """The common part serves all tasks, everything else one."""
        everyone = frozenset(self.tasks)
        return {
            name: everyone if name.startswith("trunk.") else frozenset({name.split(".")[1]})
            for name, _ in self.named_parameters()
        }

    def shared_modules(self) -> dict[str, nn.Module]:
        """The common part, if there is any."""
        return {} if isinstance(self.trunk, nn.Identity) else {"trunk": self.trunk}

    def replicated_modules(self) -> dict[str, nn.Module]:
        """The tasks' encoders but for the fully connected layers, where each has its own."""
        if self.shared_modules():
            return {}
        return {name: part for task in self.tasks for name, part in self._unconnected(task)}

    def _unconnected(self, task: str) -> Iterator[tuple[str, nn.Module]]:
        encoder = self.encoders[task]
        layers = {encoder.get_submodule(place) for place in self.connected.values()}
        return largest_parts(f"encoders.{task}", encoder, lambda part: part not in layers)

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The task's encoder and head."""
        self.check_task(task)
        return {f"encoders.{task}": self.encoders[task], f"heads.{task}": self.heads[task]}


class _Mean(nn.Module):
    """A running mean that is saved with the model: a run may stop within an epoch."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def add(self, value: Tensor) -> None:
        """Take a scalar in."""
        self.total += value
        self.count += 1

    def clear(self) -> None:
        """Begin anew."""
        self.total.zero_()
        self.count.zero_()


def _fully_connected(encoder: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """The encoder's fully connected layers by name, all by default."""
    linear = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    for name in names or ():
        if name not in linear:
            raise ParameterError(f"layers: {type(encoder).__name__}: {unknown_name('linear layer', name, linear)}")
    return {name: linear[name] for name in (linear if names is None else names)}


def _cut(encoder: nn.Module, connected: Mapping[str, nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The stages before the first that holds a fully connected layer, and the others.

    Raises:
        ParameterError: if there are none before it.
    """
    stages = stages_of(encoder)
    layers = set(connected.values())
    first = next((i for i, stage in enumerate(stages.values()) if not layers.isdisjoint(stage.modules())), len(stages))
    if first == 0:
        raise ParameterError(
            f"the encoder, of stages {', '.join(stages)}, has nothing before its first fully connected layer that "
            "tasks could share. Use `weights: own`, or name in `layers` those that every task shall have for itself."
        )
    parts = list(stages.values())
    return nn.Sequential(*parts[:first]), nn.Sequential(*parts[first:])


@torch.no_grad()
def _rows_of(reference: Reference, same: ClassMapping) -> LinearHead:
    """A last layer of the auxiliary one's rows for a task's classes; a class without a counterpart starts afresh."""
    last: Any = reference.last
    head = LinearHead(last.in_features, len(same.theirs), bias=last.bias is not None)
    head.weight[same.own] = last.weight[same.known].to(head.weight)
    if last.bias is not None:
        head.bias[same.own] = last.bias[same.known].to(head.weight)
    return head.to(last.weight.device)
