"""A network a task, whose features are fused between stages by learned 1x1 convolutions."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from sparsemtl.architectures.experts import Maker
from sparsemtl.architectures.streams import Streams
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Fraction, Positive, validated
from sparsemtl.tasks.task import Task


class NDDR(Streams):
    """NDDR-CNN: a network a task, fused behind every stage by a 1x1 convolution for each task (Gao et al. 2019).

    Behind a stage the features F_j of tasks j become ReLU(BN(W_t [F_1, ..., F_T] + b_t)) for every task t, where
    [...] puts channels beside each other and W_t is a 1x1 convolution, or a linear layer where features are vectors.
    W_t starts as `own` times the task's own features and (1 - own) / (T - 1) times every other task's. As all tasks'
    networks take part in every task's output, all their weights up to the last fusion are shared ones, and masks may
    be put on them; the fusions themselves are never masked.

    Args:
        encoder: a module, of which every task gets a copy; a function that makes one; or task name -> module, such as
            networks that were trained for one task each, with which the paper starts.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        after: names of the parts of the encoder behind which features are fused. By default those are the layers of a
            stack with their activation, and the stages of a residual network.
        own: what a task's own features weigh at first, in (0, 1]; the rest of 1 is shared by the other tasks.
        norm: put a batch norm behind every fusion.
        activation: put a ReLU behind every fusion.
        lr_factor: by what the learning rate of the fusions is multiplied, see `lr_factors`.
        shortcut: behind the last fusion, put all of a task's fused features beside each other, brought to the size of
            the last ones, and take a 1x1 convolution back to their number of channels (NDDR-CNN-Shortcut).
        fresh: draw the weights of every copy of a module but the first anew; without, the copies begin as equals, as
            in `SingleTask`.

    Raises:
        ParameterError: if the encoder does not tell where it can be cut, or has no part of such a name; if there is
            no fusion to take a shortcut from.

    Differences from the paper:
        - Fusions learn as fast as other weights; the paper's 100 times (`lr_factor`) are for gradient descent, not
          for optimizers that scale steps, as Adam does.
        - Feature maps larger than the last are brought to their size by averaging, smaller ones bilinearly; the
          authors' code interpolates both. What is behind the last fusion, such as fully connected layers, reads the
          shortcut, as in their code.
        - The authors' code is for two tasks; of more, each of the others gets an equal part of 1 - `own`.

    Example:
        >>> model = NDDR(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), [Classification("a", 3), Regression("b")])
        >>> outputs = model(torch.randn(5, 6))  # fusions learn their width from a batch
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
        after: Sequence[str] | None = None,
        own: Fraction = 0.9,
        norm: bool = True,
        activation: bool = True,
        lr_factor: Positive = 1.0,
        shortcut: bool = False,
        fresh: bool = False,
    ) -> None:
        def fusion(streams: int, stage: nn.Module) -> Fusion:
            return Fusion(streams, own=own, norm=norm, activation=activation)

        super().__init__(encoder, tasks, heads, mixer=fusion, after=after, fresh=fresh)
        if shortcut and not self.mixed:
            raise ParameterError("shortcut=True needs at least one fusion to start from, found none. See `after`.")
        self.lr_factor = lr_factor
        starts = self.tasks if shortcut else ()
        self.shortcuts = nn.ModuleDict({task: Shortcut(norm=norm, activation=activation) for task in starts})

    @property
    def lr_factors(self) -> dict[str, float]:
        """The factor of the fusions and shortcuts."""
        if self.lr_factor == 1:
            return {}
        return {n: self.lr_factor for n, _ in self.named_parameters() if n.startswith(("mixers.", "shortcuts."))}

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run all networks up to the last fusion, then those of the named tasks, and their heads.

        Args:
            x: what all encoders read; or task name -> what its encoder reads, batches of one size.
            tasks: names of the tasks, all by default.
        """
        chosen = self.chosen(tasks)
        if not self.shortcuts or not chosen:
            return super().forward(x, chosen)
        own = x if isinstance(x, Mapping) and x.keys() == self.tasks.keys() else dict.fromkeys(self.tasks, x)
        stages = {task: stages_of(encoder, self.after) for task, encoder in self.encoders.items()}
        names = list(next(iter(stages.values())))
        last = names.index(self.mixed[-1]) + 1
        fused = self._fused({task: own[task] for task in self.tasks}, stages, names[:last])
        outputs = {}
        for task in dict.fromkeys(chosen):
            features = self.shortcuts[task](fused[task])
            for name in names[last:]:
                features = stages[task][name](features)
            outputs[task] = self.heads[task](features)
        return outputs

    def _fused(
        self, streams: dict[str, Any], stages: Mapping[str, Mapping[str, nn.Module]], names: Sequence[str]
    ) -> dict[str, list[Tensor]]:
        """What every fusion gives each task, through the named stages."""
        mixers = dict(zip(self.mixed, self.mixers, strict=True))
        found: dict[str, list[Tensor]] = {task: [] for task in streams}
        for name in names:
            streams = {task: stages[task][name](features) for task, features in streams.items()}
            if name in mixers:
                streams = dict(zip(streams, mixers[name](list(streams.values())), strict=True))
                for task, features in streams.items():
                    found[task].append(features)
        return found

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """The head, the shortcut, and what of the task's encoder is behind the last fusion."""
        modules = super().task_modules(task)
        return {**modules, f"shortcuts.{task}": self.shortcuts[task]} if self.shortcuts else modules


class Pointwise(LazyModuleMixin, nn.Module, abc.ABC):
    """A 1x1 convolution, batch norm and ReLU over features side by side; it learns its width from the first batch.

    Args:
        norm: whether there is the batch norm.
        activation: whether there is the ReLU.
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
        """Channels out and in, for such features."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Put the weights back to where they start."""

    def initialize_parameters(self, features: Sequence[Tensor]) -> None:
        """Learn the width from features (B, channels, ...); torch calls this before the first forward."""
        if isinstance(self.weight, UninitializedParameter) and isinstance(self.bias, UninitializedParameter):
            shape = self.shape(features)
            self.weight.materialize(shape)
            self.bias.materialize(shape[:1])
            self.reset_parameters()

    def applied(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_j, ...) of one size to (B, channels out, ...)."""
        x = torch.cat(list(features), dim=1)
        if x.shape[1] != self.weight.shape[1]:
            raise ParameterError(f"expected features of {self.weight.shape[1]} channels in all, got {x.shape[1]}.")
        flat = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        y = F.conv1d(flat, self.weight.unsqueeze(2), self.bias)
        y = y if self.norm is None else self.norm(y)
        y = F.relu(y) if self.activation else y
        return y.reshape(len(x), len(self.weight), *x.shape[2:])


class Fusion(Pointwise):
    """From T features to T, each a learned combination of the channels of all.

    Args:
        streams: number of streams T; the rows and columns of the weight are theirs, one stream after the other.
        own: weight of a stream in its own combination at first; the others have the rest of 1 in equal parts.
        norm: whether a batch norm follows.
        activation: whether a ReLU follows.
    """

    def __init__(self, streams: int, *, own: float, norm: bool, activation: bool) -> None:
        super().__init__(norm=norm, activation=activation)
        self.streams = streams
        self.own = own if streams > 1 else 1.0

    def shape(self, features: Sequence[Tensor]) -> tuple[int, int]:
        """As many channels out as in."""
        _check_alike(features)
        width = sum(stream.shape[1] for stream in features)
        return width, width

    def reset_parameters(self) -> None:
        """Every channel of a stream is `own` times itself, and a part of that channel of the others."""
        streams = torch.full((self.streams, self.streams), (1 - self.own) / max(self.streams - 1, 1))
        with torch.no_grad():
            eye = torch.eye(len(self.weight) // self.streams)
            self.weight.copy_(torch.kron(streams.fill_diagonal_(self.own), eye))
            self.bias.zero_()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Fuse T features (B, channels, ...) to as many.

        Raises:
            ParameterError: if the features differ in shape, or have another number of channels.
        """
        _check_alike(features)
        fused = self.applied(features).chunk(self.streams, dim=1)
        return [stream.contiguous() for stream in fused]  # layers round otherwise on a part of a larger tensor


class Shortcut(Pointwise):
    """From what all fusions give a task to the shape of what the last one does."""

    def shape(self, features: Sequence[Tensor]) -> tuple[int, int]:
        """The last features' channels out, those of all in."""
        return features[-1].shape[1], sum(feature.shape[1] for feature in features)

    def reset_parameters(self) -> None:
        """Draw as the authors do, uniformly after Glorot."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B, C_l, ...) of any sizes to (B, C_last, ...), of the last one's size."""
        return self.applied([resized(feature, features[-1].shape[2:]) for feature in features])


def resized(features: Tensor, size: torch.Size) -> Tensor:
    """Bring maps (B, C, H, W) to a size: larger ones by averaging, smaller ones bilinearly; to () by their mean.

    Raises:
        ParameterError: if these are no maps.
    """
    if features.shape[2:] == size:
        return features
    if not size:
        return features.flatten(2).mean(2)
    if features.ndim != 4 or len(size) != 2:
        raise ParameterError(
            f"a shortcut brings maps (B, C, H, W) to one size, or to vectors; found features of size "
            f"{tuple(features.shape[2:])} to be brought to {tuple(size)}."
        )
    if features.shape[2] >= size[0] and features.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(features, (size[0], size[1]))
    return F.interpolate(features, size=list(size), mode="bilinear", align_corners=False)


def _check_alike(features: Sequence[Tensor]) -> None:
    shapes = {tuple(stream.shape) for stream in features}
    if len(shapes) > 1:
        raise ParameterError(f"streams must have features of one shape to be fused, found {sorted(shapes)}.")
