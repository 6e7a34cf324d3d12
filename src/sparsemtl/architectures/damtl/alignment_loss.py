"""Alignment losses of DAMTL: three interpretations of Eq. 3, each a discrepancy class by class.

Eq. 3 compares the fully connected layers of a task's network with those of the auxiliary network. It leaves open which
inputs the layers have in this comparison: those of the task's network (`LayerAlignment`), those of each network on the
same samples (`FeatureAlignment`), or those of each network on its own samples (`ClassicAlignment`).
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.architectures.damtl.alignment import Kernel, conditional_mmd, layer_discrepancy
from sparsemtl.architectures.damtl.class_map import ClassMapping
from sparsemtl.architectures.damtl.feature_cache import FeatureCache
from sparsemtl.architectures.damtl.reference import LAST, ReferenceNetwork, Source, Tap
from sparsemtl.architectures.damtl.reference_features import ReferenceFeatures
from sparsemtl.errors import ParameterError
from sparsemtl.tasks.classification import Classification

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task

Align = Literal["layer", "feature", "classic", "none"]
"""Name of an alignment loss; `none` is no alignment."""


class AlignmentLoss(nn.Module, abc.ABC):
    """Base of discrepancies between a task's fully connected layers and those of the auxiliary network.

    Args:
        kernel: see `sparsemtl.architectures.damtl.alignment.Kernel`.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    @abc.abstractmethod
    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, mapping: ClassMapping | None) -> Tensor:
        """Return the discrepancy, summed over the layers and over the classes in the batch.

        Args:
            taps: name of a layer -> its tap in the task's network; of the last layer, the outputs of `mapping.mapped`
                only.
            x: input of the task's network.
            classes: int64 (B,), class of every sample; negative for a sample without a class.
            mapping: class mapping of the task; None if the task's last layer is not aligned.
        """


class LayerAlignment(AlignmentLoss):
    """Discrepancy between the layers of both networks on the features of the task's network, as the paper words it.

    It needs only the fully connected layers of the auxiliary network. With a linear kernel it has a closed form.

    Args:
        reference: the auxiliary network.
        kernel: see `AlignmentLoss`.
    """

    def __init__(self, reference: ReferenceNetwork, kernel: Kernel) -> None:
        super().__init__(kernel)
        layers = {name: reference.encoder.get_submodule(name) for name in reference.layers}
        if reference.last is not None:
            layers[LAST] = reference.last
        self.names = tuple(layers)
        self.layers = nn.ModuleList(layers.values())

    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, mapping: ClassMapping | None) -> Tensor:
        """Return the discrepancy, see `AlignmentLoss.forward`."""
        layers = dict(zip(self.names, self.layers, strict=True))
        return _total(self._of_layer(tap, _weights(layers[name], name, mapping), classes) for name, tap in taps.items())

    def _of_layer(self, tap: Tap, reference: tuple[Tensor, Tensor | None], classes: Tensor) -> Tensor:
        if self.kernel == "linear":
            return layer_discrepancy(tap.features, classes, (tap.weight, tap.bias), reference)
        weight, bias = reference
        reference_output = F.linear(tap.features.to(weight.dtype), weight, bias)  # features may have half precision
        return conditional_mmd(reference_output, tap.output, classes, classes, self.kernel)


class FeatureAlignment(AlignmentLoss):
    """Discrepancy between the layers' outputs in both networks on the same samples.

    Args:
        reference: the auxiliary network.
        kernel: see `AlignmentLoss`.
        megabytes: size of the `FeatureCache` of the auxiliary network's outputs.
    """

    def __init__(self, reference: ReferenceNetwork, kernel: Kernel, megabytes: float) -> None:
        super().__init__(kernel)
        self.reference = reference
        self.cache = FeatureCache(megabytes)

    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, mapping: ClassMapping | None) -> Tensor:
        """Return the discrepancy, see `AlignmentLoss.forward`."""
        features = _with_mapped_columns(self.cache(self.reference, x), mapping)
        return _total(
            conditional_mmd(features[name], tap.output, classes, classes, self.kernel) for name, tap in taps.items()
        )

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.cache.clear()  # the network moves to another device or dtype
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.cache.clear()
        super()._load_from_state_dict(*args, **kwargs)


class ClassicAlignment(AlignmentLoss):
    """Discrepancy between the layers' outputs in both networks, each on its own training samples.

    Classes without a counterpart, and classes of which the auxiliary task has no sample, are left out.

    Args:
        reference_features: outputs of the auxiliary network's layers on its training samples.
        kernel: see `AlignmentLoss`.
    """

    def __init__(self, reference_features: ReferenceFeatures, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.reference_features = reference_features

    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, mapping: ClassMapping | None) -> Tensor:
        """Return the discrepancy, see `AlignmentLoss.forward`."""
        assert mapping is not None
        features, labels = self.reference_features()
        features = _with_mapped_columns(features, mapping)
        mapped = mapping.indices[classes.clamp(min=0)].where(classes >= 0, -1)
        return _total(
            conditional_mmd(features[name], tap.output, labels, mapped, self.kernel) for name, tap in taps.items()
        )


def _weights(layer: Any, name: str, mapping: ClassMapping | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of an auxiliary layer; of the last layer, the rows of mapped classes only."""
    if name != LAST:
        return layer.weight, layer.bias
    assert mapping is not None
    rows = mapping.counterparts
    return layer.weight[rows], None if layer.bias is None else layer.bias[rows]


def _with_mapped_columns(features: dict[str, Tensor], mapping: ClassMapping | None) -> dict[str, Tensor]:
    """Return the features; of the last layer, the columns of mapped classes only."""
    return features if mapping is None else {**features, LAST: features[LAST][:, mapping.counterparts]}


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


@dataclass(frozen=True)
class AlignmentSetup:
    """Tasks to align, and the auxiliary network to which they are aligned.

    Attributes:
        tasks: task name -> task.
        mappings: task name -> class mapping, for tasks whose last layer is made of the auxiliary network's rows.
        reference: the auxiliary network.
        source: training task of the auxiliary network, None if unknown.
    """

    tasks: Mapping[str, Task]
    mappings: Mapping[str, ClassMapping]
    reference: ReferenceNetwork
    source: Source | None

    def check(self) -> None:
        """Raise a ParameterError if a task has no classes, or no layer to align."""
        for name, task in self.tasks.items():
            if not isinstance(task, Classification):
                raise ParameterError(
                    f"task {name!r} is a {type(task).__name__}, and alignment compares classes. Use `align: none`."
                )
            if not self.reference.layers and name not in self.mappings:
                raise ParameterError(
                    f"task {name!r} has no fully connected layer to align: the auxiliary network has none, and the "
                    "task's last layer is not made of the auxiliary one's rows. Use `align: none`."
                )

    def reference_features(self, per_class: int) -> ReferenceFeatures:
        """Return the features of the auxiliary network on its training samples.

        Args:
            per_class: see `ReferenceFeatures`.

        Raises:
            ParameterError: if the samples are unknown, or the class mapping of a task.
        """
        if self.source is None or self.source.samples is None or self.source.last is None:
            raise ParameterError(
                "align='classic' compares with the samples and classes of the auxiliary task, which are not known "
                "here. Give them in `source`, or use `align: layer`."
            )
        for name in self.tasks:
            if name not in self.mappings:
                raise ParameterError(
                    f"task {name!r}: its classes are not known among those of the auxiliary task, with which "
                    "align='classic' compares, for it has a head of its own or null in `class_map`. Use "
                    "`align: layer`."
                )
        return ReferenceFeatures(self.reference, self.source.samples, self.source.task, per_class)


def make_alignment_loss(
    align: Align, kernel: Kernel, setup: AlignmentSetup, *, per_class: int, megabytes: float
) -> AlignmentLoss | None:
    """Return the alignment loss of a name, or None for `none`.

    Args:
        align: name of the loss.
        kernel: see `AlignmentLoss`.
        setup: tasks to align, and the auxiliary network.
        per_class: number of samples per class that `classic` keeps if the kernel is `rbf`.
        megabytes: size of the cache of `feature`.

    Raises:
        ParameterError: if a task has no classes or no layer to align, or `classic` lacks samples or class mappings.
    """
    if align == "none":
        return None
    setup.check()
    if align == "layer":
        return LayerAlignment(setup.reference, kernel)
    if align == "feature":
        return FeatureAlignment(setup.reference, kernel, megabytes)
    return ClassicAlignment(setup.reference_features(per_class if kernel == "rbf" else 0), kernel)
