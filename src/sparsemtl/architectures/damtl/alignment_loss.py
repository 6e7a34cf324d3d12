"""What "aligned to the auxiliary network, class by class" is taken to mean: three readings of DAMTL's Eq. 3."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.architectures.damtl.alignment import Kernel, conditional_mmd, layer_discrepancy
from sparsemtl.architectures.damtl.class_map import ClassMapping
from sparsemtl.architectures.damtl.feature_cache import FeatureCache
from sparsemtl.architectures.damtl.reference import LAST, Reference, Source, Tap
from sparsemtl.architectures.damtl.reference_features import ReferenceFeatures
from sparsemtl.errors import ParameterError
from sparsemtl.tasks import Classification, Task

Align = Literal["layer", "feature", "classic", "none"]


class Reading(nn.Module, abc.ABC):
    """A way to compare a task's fully connected layers with the auxiliary network's.

    Args:
        kernel: see `sparsemtl.architectures.damtl.alignment.Kernel`.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    @abc.abstractmethod
    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, same: ClassMapping | None) -> Tensor:
        """Sum over the layers, and over the classes in the batch.

        Args:
            taps: what the task's layers did, by name; of the last one, the outputs for `same.own` only.
            x: what the task's network read.
            classes: the samples' classes, int64 (B,), negative for those that have none.
            same: the task's classes among those of the auxiliary task; None if its last layer is not known.
        """


class LayerReading(Reading):
    """The auxiliary network's layers and the task's, on what the task's network feeds to them: the paper's words.

    Of the auxiliary network it needs those layers only; with a linear kernel it is computed in closed form.

    Args:
        reference: the auxiliary network.
        kernel: see `Reading`.
    """

    def __init__(self, reference: Reference, kernel: Kernel) -> None:
        super().__init__(kernel)
        layers = {name: reference.encoder.get_submodule(name) for name in reference.layers}
        if reference.last is not None:
            layers[LAST] = reference.last
        self.names = tuple(layers)
        self.layers = nn.ModuleList(layers.values())

    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, same: ClassMapping | None) -> Tensor:
        """See `Reading`."""
        layers = dict(zip(self.names, self.layers, strict=True))
        return _total(self._of_layer(tap, _weights(layers[name], name, same), classes) for name, tap in taps.items())

    def _of_layer(self, tap: Tap, reference: tuple[Tensor, Tensor | None], classes: Tensor) -> Tensor:
        if self.kernel == "linear":
            return layer_discrepancy(tap.features, classes, (tap.weight, tap.bias), reference)
        weight, bias = reference
        theirs = F.linear(tap.features.to(weight.dtype), weight, bias)  # in mixed precision features are in half
        return conditional_mmd(theirs, tap.output, classes, classes, self.kernel)


class FeatureReading(Reading):
    """What the two networks' layers give of the same inputs.

    Args:
        reference: the auxiliary network.
        kernel: see `Reading`.
        megabytes: see `FeatureCache`.
    """

    def __init__(self, reference: Reference, kernel: Kernel, megabytes: float) -> None:
        super().__init__(kernel)
        self.reference = reference
        self.remembered = FeatureCache(megabytes)

    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, same: ClassMapping | None) -> Tensor:
        """See `Reading`."""
        theirs = _known_columns(self.remembered(self.reference, x), same)
        return _total(
            conditional_mmd(theirs[name], tap.output, classes, classes, self.kernel) for name, tap in taps.items()
        )

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.remembered.forget()  # as the network moves to another device or type
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.remembered.forget()
        super()._load_from_state_dict(*args, **kwargs)


class ClassicReading(Reading):
    """What the auxiliary network's layers give of the inputs that it was trained on, and the task's of its own.

    Classes without a counterpart, and those of which the auxiliary task has no sample, are left out.

    Args:
        bank: of the auxiliary network.
        kernel: see `Reading`.
    """

    def __init__(self, bank: ReferenceFeatures, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.bank = bank

    def forward(self, taps: Mapping[str, Tap], x: Any, classes: Tensor, same: ClassMapping | None) -> Tensor:
        """See `Reading`."""
        assert same is not None
        features, labels = self.bank()
        theirs = _known_columns(features, same)
        mine = same.theirs[classes.clamp(min=0)].where(classes >= 0, -1)
        return _total(
            conditional_mmd(theirs[name], tap.output, labels, mine, self.kernel) for name, tap in taps.items()
        )


def _weights(layer: Any, name: str, same: ClassMapping | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one of the auxiliary network's layers, of the last one for the classes in common."""
    if name != LAST:
        return layer.weight, layer.bias
    assert same is not None
    return layer.weight[same.known], None if layer.bias is None else layer.bias[same.known]


def _known_columns(features: dict[str, Tensor], same: ClassMapping | None) -> dict[str, Tensor]:
    """The same, of the last layer for the classes in common."""
    return features if same is None else {**features, LAST: features[LAST][:, same.known]}


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


@dataclass(frozen=True)
class Alignable:
    """What there is to align.

    Attributes:
        tasks: the tasks.
        same: task -> its classes among those of the auxiliary task, for tasks whose last layer is made of its rows.
        reference: the auxiliary network.
        source: what it was trained for, if that is known.
    """

    tasks: Mapping[str, Task]
    same: Mapping[str, ClassMapping]
    reference: Reference
    source: Source | None

    def check(self) -> None:
        """Raise a ParameterError if a task has no classes, or no layer to align."""
        for name, task in self.tasks.items():
            if not isinstance(task, Classification):
                raise ParameterError(
                    f"task {name!r} is a {type(task).__name__}, and alignment compares classes. Use `align: none`."
                )
            if not self.reference.layers and name not in self.same:
                raise ParameterError(
                    f"task {name!r} has no fully connected layer to align: the auxiliary network has none, and the "
                    "task's last layer is not made of the auxiliary one's rows. Use `align: none`."
                )

    def bank(self, each: int) -> ReferenceFeatures:
        """What the auxiliary network gives of its own samples; see `ReferenceFeatures`.

        Raises:
            ParameterError: if they are not known, or a task's classes are not among theirs.
        """
        if self.source is None or self.source.samples is None or self.source.last is None:
            raise ParameterError(
                "align='classic' compares with the samples and classes of the auxiliary task, which are not known "
                "here. Give them in `source`, or use `align: layer`."
            )
        for name in self.tasks:
            if name not in self.same:
                raise ParameterError(
                    f"task {name!r}: its classes are not known among those of the auxiliary task, with which "
                    "align='classic' compares, for it has a head of its own or null in `class_map`. Use "
                    "`align: layer`."
                )
        return ReferenceFeatures(self.reference, self.source.samples, self.source.task, each)


def make_reading(align: Align, kernel: Kernel, given: Alignable, *, bank: int, megabytes: float) -> Reading | None:
    """The reading of that name, or None for `none`.

    Args:
        align: its name.
        kernel: see `Reading`.
        given: what there is to align.
        bank: see `ReferenceFeatures`.
        megabytes: see `FeatureCache`.

    Raises:
        ParameterError: if a task has no classes or no layer to align, or `classic` lacks samples or counterparts.
    """
    if align == "none":
        return None
    given.check()
    if align == "layer":
        return LayerReading(given.reference, kernel)
    if align == "feature":
        return FeatureReading(given.reference, kernel, megabytes)
    return ClassicReading(given.bank(bank if kernel == "rbf" else 0), kernel)
