"""NDDR-CNN: one network per task, and 1x1 convolutions that fuse their features between stages."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from typing_extensions import Doc, Unpack

from sparsemtl.architectures.copies import Maker
from sparsemtl.architectures.streams import StreamOptions, Streams
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class NDDR(Streams):
    """NDDR-CNN: one network per task, fused after every stage by one 1x1 convolution per task (Gao et al. 2019).

    After a stage, the features F_j of tasks j become ReLU(BN(W_t [F_1, ..., F_T] + b_t)) for every task t. The
    brackets concatenate channels, and W_t is a 1x1 convolution, or a linear layer if features are vectors. W_t starts
    as `own` times the task's own features plus (1 - own) / (T - 1) times every other task's. All tasks' networks take
    part in every task's output. Therefore all their weights up to the last fusion are shared, and masks may be put on
    them; the fusions are never masked.

    Args:
        encoder: a module to copy for every task; a function that returns a new module; or task name -> module, such as
            networks that were trained for one task each, with which the paper starts.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if the encoder cannot be cut into stages, or has no part of a name in `after`; if `shortcut`,
            and there is no fusion.

    Differences from the paper:
        - Fusions have the learning rate of the other weights. The paper's 100 times that rate (`lr_factor`) suit
          gradient descent, not optimizers that scale steps, such as Adam.
        - The shortcut averages feature maps that are larger than the last ones, and interpolates smaller ones
          bilinearly; the authors' code interpolates both. Layers after the last fusion, such as fully connected ones,
          read the shortcut, as in their code.
        - The authors' code has two tasks. With more, each of the other tasks gets an equal part of 1 - `own`.

    Examples:
        >>> model = NDDR(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), [Classification("a", 3), Regression("b")])
        >>> outputs = model(torch.randn(5, 6))  # the fusions infer their width from a batch
        >>> model.mixers[0].weight.data
        tensor([[0.9000, 0.0000, 0.1000, 0.0000],
                [0.0000, 0.9000, 0.0000, 0.1000],
                [0.1000, 0.0000, 0.9000, 0.0000],
                [0.0000, 0.1000, 0.0000, 0.9000]])
    """

    @validated
    def __init__(
        self,
        encoder: Maker | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        norm: Annotated[bool, Doc("Put a batch norm after every fusion.")] = True,
        activation: Annotated[bool, Doc("Put a ReLU after every fusion.")] = True,
        shortcut: Annotated[
            bool,
            Doc(
                "After the last fusion, concatenate all fused features of a task, resized to the last ones, and reduce "
                "them by a 1x1 convolution to the last ones' number of channels (NDDR-CNN-Shortcut)."
            ),
        ] = False,
        **options: Unpack[StreamOptions],
    ) -> None:
        def fusion(streams: int, stage: nn.Module) -> _Fusion:
            return _Fusion(streams, own=options["own"], norm=norm, activation=activation)

        super().__init__(encoder, tasks, heads, mixer=fusion, after=options["after"], fresh=options["fresh"])
        if shortcut and not self.mixed:
            raise ParameterError("shortcut=True needs at least one fusion to start from, found none. See `after`.")
        self.lr_factor = options["lr_factor"]
        starts = self.tasks if shortcut else ()
        self.shortcuts = nn.ModuleDict({task: _Shortcut(norm=norm, activation=activation) for task in starts})

    @property
    def lr_factors(self) -> dict[str, float]:
        """Name of every parameter of a fusion or shortcut -> factor of its learning rate."""
        if self.lr_factor == 1:
            return {}
        return {n: self.lr_factor for n, _ in self.named_parameters() if n.startswith(("mixers.", "shortcuts."))}

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run all networks up to the last fusion, then those of the named tasks, and their heads.

        Args:
            x: input of all encoders; or task name -> input of its encoder, batches of one size.
            tasks: names of the tasks, all by default.
        """
        chosen = self.chosen(tasks)
        if not self.shortcuts or not chosen:
            return self._outputs(x, chosen)
        stages = self._stages()
        _, rest = self._split(stages[chosen[0]])
        _, fused = self._mixed_features(x, stages)
        outputs = {}
        for task in dict.fromkeys(chosen):
            features = self.shortcuts[task](fused[task])
            for name in rest:
                features = stages[task][name](features)
            outputs[task] = self.heads[task](features)
        return outputs

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head and shortcut, and the parts of its encoder after the last fusion."""
        modules = self._own_modules(task)
        return {**modules, f"shortcuts.{task}": self.shortcuts[task]} if self.shortcuts else modules


class _Pointwise(LazyModuleMixin, nn.Module, abc.ABC):
    """Base of a 1x1 convolution with batch norm and ReLU over concatenated features; infers its width from a batch.

    Args:
        norm: apply a batch norm.
        activation: apply a ReLU.
    """

    weight: nn.Parameter
    """(channels out, channels in)."""
    bias: nn.Parameter
    """(channels out,)."""

    def __init__(self, *, norm: bool, activation: bool) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            waiting: Any = UninitializedParameter()
            self.register_parameter(name, waiting)
        self.norm = nn.LazyBatchNorm1d() if norm else None
        self.activation = activation

    @abc.abstractmethod
    def shape(self, features: Sequence[Tensor]) -> tuple[int, int]:
        """Return the numbers of output and input channels for these features."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Set the initial weights."""

    def initialize_parameters(self, features: Sequence[Tensor]) -> None:
        """Infer the width from features (B, channels, ...); torch calls this before the first forward pass."""
        if isinstance(self.weight, UninitializedParameter) and isinstance(self.bias, UninitializedParameter):
            shape = self.shape(features)
            self.weight.materialize(shape)
            self.bias.materialize(shape[:1])
            self.reset_parameters()

    def applied(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, output channels, ...) for features (B, C_j, ...) of one size."""
        x = torch.cat(list(features), dim=1)
        if x.shape[1] != self.weight.shape[1]:
            raise ParameterError(f"expected features of {self.weight.shape[1]} channels in all, got {x.shape[1]}.")
        flat = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        y = F.conv1d(flat, self.weight.unsqueeze(2), self.bias)
        y = y if self.norm is None else self.norm(y)
        y = F.relu(y) if self.activation else y
        return y.reshape(len(x), len(self.weight), *x.shape[2:])


class _Fusion(_Pointwise):
    """Fusion of T features into T, each a learned combination of the channels of all.

    Args:
        streams: number of streams T; rows and columns of the weight are ordered by stream.
        own: initial weight of a stream in its own combination; the other streams share the rest to 1 equally.
        norm: apply a batch norm.
        activation: apply a ReLU.
    """

    def __init__(self, streams: int, *, own: float, norm: bool, activation: bool) -> None:
        super().__init__(norm=norm, activation=activation)
        self.streams = streams
        self.own = own if streams > 1 else 1.0

    def shape(self, features: Sequence[Tensor]) -> tuple[int, int]:
        """Return the number of all channels, twice."""
        _check_alike(features)
        width = sum(stream.shape[1] for stream in features)
        return width, width

    def reset_parameters(self) -> None:
        """Set `own` for every channel of a stream, and equal parts of the rest for the same channel of the others."""
        streams = torch.full((self.streams, self.streams), (1 - self.own) / max(self.streams - 1, 1))
        with torch.no_grad():
            eye = torch.eye(len(self.weight) // self.streams)
            self.weight.copy_(torch.kron(streams.fill_diagonal_(self.own), eye))
            self.bias.zero_()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse T features (B, channels, ...) into T features of the same shape.

        Raises:
            ParameterError: if the features differ in shape, or have another number of channels.
        """
        _check_alike(features)
        fused = self.applied(features).chunk(self.streams, dim=1)
        return [stream.contiguous() for stream in fused]  # kernels round differently on a view of a larger tensor


class _Shortcut(_Pointwise):
    """Combination of a task's features after all fusions into features of the shape of the last ones."""

    def shape(self, features: Sequence[Tensor]) -> tuple[int, int]:
        """Return the number of the last features' channels, and that of all."""
        return features[-1].shape[1], sum(feature.shape[1] for feature in features)

    def reset_parameters(self) -> None:
        """Initialize by Glorot's uniform distribution, as the authors do."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (B, C_last, ...), of the last one's size, for features (B, C_l, ...) of any sizes."""
        return self.applied([_resized(feature, features[-1].shape[2:]) for feature in features])


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    """Resize maps (B, C, H, W): larger ones by averaging, smaller ones bilinearly; to size () by their mean.

    Raises:
        ParameterError: if the features are not maps.
    """
    if features.shape[2:] == size:
        return features
    if not size:
        return features.flatten(2).mean(2)
    if features.ndim != 4 or len(size) != 2:
        raise ParameterError(
            f"a shortcut resizes maps (B, C, H, W) to one size, or to vectors; found features of size "
            f"{tuple(features.shape[2:])} to resize to {tuple(size)}."
        )
    if features.shape[2] >= size[0] and features.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(features, (size[0], size[1]))
    return F.interpolate(features, size=list(size), mode="bilinear", align_corners=False)


def _check_alike(features: Sequence[Tensor]) -> None:
    if any(stream.shape != features[0].shape for stream in features[1:]):
        shapes = sorted({tuple(stream.shape) for stream in features})
        raise ParameterError(f"streams must have features of one shape to be fused, found {shapes}.")
