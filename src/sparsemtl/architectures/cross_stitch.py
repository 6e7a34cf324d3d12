"""Cross-stitch networks: one network per task, and linear mixtures of their features between stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.architectures.copies import Maker
from sparsemtl.architectures.streams import StreamOptions, Streams
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import validated

if TYPE_CHECKING:
    from sparsemtl.tasks.task import Task


class CrossStitch(Streams):
    """Cross-stitch networks: one network per task, and learned linear mixtures between stages (Misra et al. 2016).

    After a stage, the features x_j of tasks j become sum_j A[t, j] x_j for every task t. All tasks' networks take part
    in every task's output. Therefore all their weights up to the last mixture are shared, and masks may be put on
    them; the mixing weights A are never masked.

    Args:
        encoder: a module to copy for every task; a function that returns a new module; or task name -> module, such as
            networks that were trained for one task each, with which the paper starts.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.

    Raises:
        ParameterError: if the encoder cannot be cut into stages, or has no part of a name in `after`.

    Differences from the paper:
        - A has the learning rate of the other weights. The paper's 100 to 1000 times that rate (`lr_factor`) suit
          gradient descent, not optimizers that scale steps, such as Adam.

    Examples:
        >>> model = CrossStitch(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), [Classification("a", 3), Regression("b")])
        >>> model.mixers[0].weight.data
        tensor([[0.9000, 0.1000],
                [0.1000, 0.9000]])
    """

    @validated
    def __init__(
        self,
        encoder: Maker | Mapping[str, nn.Module],
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        per_channel: Annotated[bool, Doc("Learn one A per channel, in place of one per mixture.")] = False,
        **options: Unpack[StreamOptions],
    ) -> None:
        def stitch(streams: int, stage: nn.Module) -> _Stitch:
            return _Stitch(streams, own=options["own"], channels=_width(stage) if per_channel else None)

        super().__init__(encoder, tasks, heads, mixer=stitch, after=options["after"], fresh=options["fresh"])
        self.lr_factor = options["lr_factor"]

    @property
    def lr_factors(self) -> dict[str, float]:
        """Name of every mixing weight -> factor of its learning rate."""
        return {} if self.lr_factor == 1 else dict.fromkeys(self.unmasked_parameters(), self.lr_factor)

    def forward(self, x: Any, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Run all networks up to the last mixture, then those of the named tasks, and their heads.

        Args:
            x: input of all encoders; or task name -> input of its encoder, batches of one size.
            tasks: names of the tasks, all by default.
        """
        return self._outputs(x, self.chosen(tasks))

    def task_modules(self, task: str) -> dict[str, nn.Module]:
        """Return the task's head, and the parts of its encoder after the last mixture."""
        return self._own_modules(task)


class _Stitch(nn.Module):
    """A linear mixture of streams.

    Args:
        streams: number of streams T.
        own: initial weight of a stream in its own mixture; the other streams share the rest to 1 equally.
        channels: number of channels, each with its own weights; None if all channels have the same weights.
    """

    def __init__(self, streams: int, *, own: float, channels: int | None = None) -> None:
        super().__init__()
        self.own = own if streams > 1 else 1.0
        shape = (streams, streams) if channels is None else (streams, streams, channels)
        self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial weights."""
        streams = len(self.weight)
        start = torch.full((streams, streams), (1 - self.own) / max(streams - 1, 1)).fill_diagonal_(self.own)
        with torch.no_grad():
            self.weight.copy_(start if self.weight.ndim == 2 else start.unsqueeze(2).expand_as(self.weight))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mix T features (B, ...) or (B, channels, ...) into T features of the same shape.

        Raises:
            ParameterError: if the features differ in shape, or have another number of channels.
        """
        if any(stream.shape != features[0].shape for stream in features[1:]):
            shapes = sorted({tuple(stream.shape) for stream in features})
            raise ParameterError(f"streams must have features of one shape to be mixed, found {shapes}.")
        stacked = torch.stack(list(features))
        if self.weight.ndim == 2:
            return list(torch.tensordot(self.weight, stacked, dims=1).unbind())
        if stacked.shape[2] != self.weight.shape[2]:
            raise ParameterError(f"expected features of {self.weight.shape[2]} channels, got {stacked.shape[2]}.")
        weight = self.weight.reshape(*self.weight.shape[:2], 1, -1, *(1,) * (stacked.ndim - 3))
        return [(row * stacked).sum(0) for row in weight.unbind()]


def _width(stage: nn.Module) -> int:
    """Return the number of channels of a stage's output, from the last layer that has an attribute for it.

    Raises:
        ParameterError: if no layer has one.
    """
    for layer in reversed(list(stage.modules())):
        for attribute in ("out_features", "out_channels", "num_features"):
            width = getattr(layer, attribute, None)
            if isinstance(width, int) and not isinstance(layer, nn.Sequential):
                return width
    raise ParameterError(
        "per_channel needs a layer with `out_features`, `out_channels` or `num_features` in every mixed stage, found a "
        "stage without one. Use per_channel=False."
    )
