"""DAMTL: small tasks whose networks start as copies of an auxiliary network and are aligned to it class by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Doc, TypedDict, Unpack

from sparsemtl.architectures.damtl.alignment import Kernel
from sparsemtl.architectures.damtl.alignment_loss import Align, AlignmentSetup, make_alignment_loss
from sparsemtl.architectures.damtl.class_map import ClassMapping, class_mappings
from sparsemtl.architectures.damtl.reference import LAST, ReferenceNetwork, Source, Tap, tapped
from sparsemtl.architectures.heads import heads_for
from sparsemtl.architectures.streams import largest_parts
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import LabelError, ParameterError, unknown_name
from sparsemtl.heads.linear import LinearHead
from sparsemtl.networks.declarations import Figure
from sparsemtl.networks.frozen import Frozen
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.registry.parameters import Count, Default, NonNegative, validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class AlignmentOptions(TypedDict, total=False):
    """Options of the alignment of the tasks' layers to the auxiliary network's."""

    align: Annotated[
        Align,
        Default("layer"),
        Doc(
            "Outputs of fully connected layers to compare: `layer`, those of both networks' layers on the features of "
            "the task's network; `feature`, those in both networks on the same samples; `classic`, those in both "
            "networks, each on its own training samples; `none`, no alignment."
        ),
    ]
    kernel: Annotated[
        Kernel,
        Default("linear"),
        Doc(
            "Kernel of the discrepancy: `linear` compares the means of the classes; `rbf`, a sum of five Gaussian "
            "kernels, compares their distributions."
        ),
    ]
    strength: Annotated[
        NonNegative, Default(0.9), Doc("Factor of the alignment beside the task's loss, lambda_2 in the paper.")
    ]
    bank: Annotated[
        Count,
        Default(32),
        Doc(
            "Number of training samples of each auxiliary class with which `classic` compares if the kernel is `rbf`; "
            "with `linear` it compares with the mean over all samples."
        ),
    ]
    remember: Annotated[
        NonNegative,
        Default(512.0),
        Doc("Size in megabytes of the cache of the auxiliary network's outputs, which `feature` computes per sample."),
    ]


class Auxiliary(MultiTaskModel):
    """Networks of small tasks, started from a large one and aligned to it (DAMTL; Feng & Chen, arXiv 2201.02305).

    The encoder is the auxiliary network, trained on many classes. Every task gets a copy of its fully
    connected layers. The task's last layer is made of the rows of the auxiliary network's last layer for the task's
    classes. With `sharing: soft-masks` every task also has a non-negative mask over the convolutions.

    `penalty` returns the alignment: the discrepancy between the outputs of the task's layers and those of the
    auxiliary network's layers, summed over the fully connected layers and over the classes in a batch. Inference does
    not need the auxiliary network. In a configuration, `pretraining` trains the auxiliary network first.

    In the paper's form (`weights: own`), tasks share nothing once the auxiliary network is trained: training them
    together gives the same networks as training them separately. With `weights: shared` the tasks share weights.

    Args:
        encoder: the auxiliary network without its last layer.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`. A head given here is neither made of rows nor aligned.
        source: training task of the encoder. Without it, last layers start with random weights and are not aligned.

    Raises:
        ParameterError: if a class has no counterpart; if a task to align is no classification; if an encoder whose
            convolutions are to be shared cannot be cut into stages.

    Differences from the paper:
        - Eq. 3 leaves open which outputs are compared. `layer` with a linear kernel follows its wording; it needs
          neither auxiliary data nor a forward pass of the auxiliary network.
        - In the paper the auxiliary network has all classes of all tasks; here a class may have no counterpart.

    Examples:
        >>> everything, pets = Classification("all", ["cat", "dog", "car"]), Classification("pets", ["dog", "cat"])
        >>> big = SharedBottom(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU()), [everything])
        >>> x, y = torch.rand(6, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> outputs = big(x)["all"]  # in practice, `big` is trained first
        >>> model = Auxiliary(big.encoder, [pets], source=Source(everything, big.heads["all"]))
        >>> bool(torch.allclose(model(x)["pets"], outputs[:, [1, 0]])), model.penalty("pets", y).item()
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
        weights: Annotated[
            Literal["own", "shared", "frozen"],
            Doc(
                "Training of the convolutions: `own`, every task trains a copy; `shared`, all tasks train the same "
                "ones; `frozen`, all tasks use the same ones and nothing trains them."
            ),
        ] = "own",
        class_map: Annotated[
            Mapping[str, Mapping[str, Any] | None] | None,
            Doc(
                "Task -> class -> auxiliary class, or null for a class without a counterpart; null in place of a "
                "task's mapping if none of its classes has one. By default classes are matched by name. Classes "
                "without names must be mapped, unless the auxiliary task has equally many."
            ),
        ] = None,
        layers: Annotated[
            Sequence[str] | None, Doc("Names of the encoder's fully connected layers; by default all linear layers.")
        ] = None,
        **alignment: Unpack[AlignmentOptions],
    ) -> None:
        super().__init__(tasks)
        self.strength = alignment["strength"]
        connected = _fully_connected(encoder, layers)
        own_heads = dict(heads or {})
        mappings = class_mappings(self.tasks, source, class_map or {}, own_heads)
        self.class_mappings = nn.ModuleDict(mappings)
        reference = ReferenceNetwork(encoder, connected, source.last if source is not None else None)
        self.alignment_loss = make_alignment_loss(
            alignment["align"] if self.strength > 0 else "none",
            alignment["kernel"],
            AlignmentSetup(self.tasks, mappings, reference, source),
            per_class=alignment["bank"],
            megabytes=alignment["remember"],
        )
        trunk, top = (nn.Identity(), encoder) if weights == "own" else _cut(encoder, connected)
        names = {module: name for name, module in top.named_modules()}
        self.connected = {name: names[layer] for name, layer in connected.items()}
        self.trunk = Frozen(trunk) if weights == "frozen" else trunk
        self.encoders = nn.ModuleDict({task: deepcopy(top) for task in self.tasks})
        made = {task: _last_layer(reference, mapping) for task, mapping in mappings.items()}
        self.heads = heads_for(self.tasks, {**made, **own_heads}, dict.fromkeys(self.tasks, encoder))
        self._taps: dict[str, tuple[Any, dict[str, Tap]]] = {}
        self.discrepancies = nn.ModuleDict({task: _RunningMean() for task in self.tasks})

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_taps": {}}  # tensors of a graph cannot be copied

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run the common part, then the networks of the named tasks, and their heads."""
        chosen = self.chosen(tasks)
        if not chosen:
            return {}
        features = self.trunk(x)
        if self.alignment_loss is None or not self.training or not torch.is_grad_enabled():
            self._taps.clear()
            return {task: self.heads[task](self.encoders[task](features)) for task in chosen}
        outputs = {}
        for task in chosen:
            with tapped(self._aligned_layers(task)) as taps:
                outputs[task] = self.heads[task](self.encoders[task](features))
            self._taps[task] = (x, taps)
        return outputs

    def _aligned_layers(self, task: str) -> dict[str, nn.Module]:
        """Return the layers of a task that are aligned, by their names in the auxiliary network."""
        layers = {name: self.encoders[task].get_submodule(own) for name, own in self.connected.items()}
        return {**layers, LAST: self.heads[task]} if task in self.class_mappings else layers

    def penalty(self, task: str, target: Tensor) -> Tensor | None:
        """Return the alignment of the task's layers on its last batch in training, times `strength`.

        Args:
            task: name of the task.
            target: int64 (B,), its classes in this batch.

        Returns:
            a scalar; None if nothing is aligned, or there was no forward pass of the task in training since the last
            call.

        Raises:
            LabelError: if the number of classes is not the number of samples in the batch.
        """
        self.check_task(task)
        if self.alignment_loss is None or task not in self._taps:
            return None
        x, taps = self._taps.pop(task)
        mapping = self._mapping(task)
        samples = len(next(iter(taps.values())).features)
        if len(target) != samples:
            raise LabelError(f"task {task!r}: expected the classes of the {samples} samples it saw, got {len(target)}.")
        if mapping is not None:
            taps[LAST] = taps[LAST].columns(mapping.mapped)
        classes = target.where(self.tasks[task].labelled(target), -1)
        discrepancy = self.alignment_loss(taps, x, classes, mapping)
        self._mean(task).add(discrepancy.detach())
        return cast("Tensor", self.strength * discrepancy)

    def _mapping(self, task: str) -> ClassMapping | None:
        return cast("ClassMapping", self.class_mappings[task]) if task in self.class_mappings else None

    def _mean(self, task: str) -> _RunningMean:
        return cast("_RunningMean", self.discrepancies[task])

    def begin_epoch(self, epoch: int) -> None:
        """Start a new mean of the discrepancies."""
        for task in self.tasks:
            self._mean(task).clear()

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """Yield every task's mean discrepancy of the epoch, if it is aligned."""
        for task in self.tasks:
            if (mean := self._mean(task)).count:
                yield task, "discrepancy", float(mean.total / mean.count)

    def parameter_tasks(self) -> dict[str, frozenset[str]]:
        """Return the tasks that use each parameter: all tasks for the common part, one for everything else."""
        everyone = frozenset(self.tasks)
        return {
            name: everyone if name.startswith("trunk.") else frozenset({name.split(".")[1]})
            for name, _ in self.named_parameters()
        }

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the common part, if there is one."""
        return {} if isinstance(self.trunk, nn.Identity) else {"trunk": self.trunk}

    def replicated_modules(self) -> dict[str, nn.Module]:
        """Return the tasks' encoders without the fully connected layers, if every task has its own."""
        if self.shared_modules():
            return {}
        return {name: part for task in self.tasks for name, part in self._unconnected(task)}

    def _unconnected(self, task: str) -> Iterator[tuple[str, nn.Module]]:
        encoder = self.encoders[task]
        layers = {encoder.get_submodule(name) for name in self.connected.values()}
        return largest_parts(f"encoders.{task}", encoder, lambda part: part not in layers)

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's encoder and head."""
        self.check_task(task)
        own = {f"encoders.{task}": self.encoders[task], f"heads.{task}": self.heads[task]}
        return {**own, **self.loss_modules(task)}


class _RunningMean(nn.Module):
    """Running mean in buffers, which are saved with the model because a run may stop within an epoch."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def add(self, value: Tensor) -> None:
        """Add a scalar."""
        self.total += value
        self.count += 1

    def clear(self) -> None:
        """Start again with no scalar."""
        self.total.zero_()
        self.count.zero_()


def _fully_connected(encoder: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the named fully connected layers of the encoder, all by default."""
    linear = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    for name in names or ():
        if name not in linear:
            raise ParameterError(f"layers: {type(encoder).__name__}: {unknown_name('linear layer', name, linear)}")
    return {name: linear[name] for name in (linear if names is None else names)}


def _cut(encoder: nn.Module, connected: Mapping[str, nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Return the stages before the first one with a fully connected layer, and the others.

    Raises:
        ParameterError: if the first stage has a fully connected layer.
    """
    stages = stages_of(encoder)
    layers = set(connected.values())
    first = next((i for i, stage in enumerate(stages.values()) if not layers.isdisjoint(stage.modules())), len(stages))
    if first == 0:
        raise ParameterError(
            f"the encoder, of stages {', '.join(stages)}, has nothing before its first fully connected layer that "
            "tasks could share. Use `weights: own`, or name in `layers` the layers that every task copies."
        )
    parts = list(stages.values())
    return nn.Sequential(*parts[:first]), nn.Sequential(*parts[first:])


@torch.no_grad()
def _last_layer(reference: ReferenceNetwork, mapping: ClassMapping) -> LinearHead:
    """Return a last layer of the auxiliary network's rows; rows of classes without a counterpart are random."""
    last: Any = reference.last
    head = LinearHead(last.in_features, len(mapping.indices), bias=last.bias is not None)
    head.weight[mapping.mapped] = last.weight[mapping.counterparts].to(head.weight)
    if last.bias is not None:
        head.bias[mapping.mapped] = last.bias[mapping.counterparts].to(head.weight)
    return head.to(last.weight.device)
