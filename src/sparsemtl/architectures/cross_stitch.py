"""A network a task, whose features are mixed linearly between stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsemtl.architectures.experts import Maker
from sparsemtl.architectures.streams import Streams
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Fraction, Positive, validated
from sparsemtl.tasks.task import Task


class CrossStitch(Streams):
    """Cross-stitch networks: a network a task, and learned linear mixtures between their stages (Misra et al. 2016).

    Behind a stage the features x_j of tasks j become sum_j A[t, j] x_j for every task t. As all tasks' networks take
    part in every task's output, all their weights up to the last stitch are shared ones, and masks may be put on them;
    the stitches A themselves are never masked.

    Args:
        encoder: a module, of which every task gets a copy; a function that makes one; or task name -> module, such as
            networks that were trained for one task each, with which the paper starts.
        tasks: the tasks.
        heads: task name -> head, as in `SharedBottom`.
        after: names of the parts of the encoder behind which features are mixed. By default those are the layers of a
            stack with their activation, and the stages of a residual network.
        own: what A starts from on its diagonal, in (0, 1]; the rest of 1 is shared by the other tasks.
        per_channel: learn an A for every channel.
        lr_factor: by what the learning rate of A is multiplied, see `lr_factors`.
        fresh: draw the weights of every copy of a module but the first anew; without, the copies begin as equals, as
            in `SingleTask`, and A changes nothing at first.

    Raises:
        ParameterError: if the encoder does not tell where it can be cut, or has no part of such a name.

    Differences from the paper:
        - A learns as fast as other weights; the paper's 100 to 1000 times (`lr_factor`) are for gradient descent, not
          for optimizers that scale steps, as Adam does.

    Example:
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
        after: Sequence[str] | None = None,
        own: Fraction = 0.9,
        per_channel: bool = False,
        lr_factor: Positive = 1.0,
        fresh: bool = False,
    ) -> None:
        def stitch(streams: int, stage: nn.Module) -> Stitch:
            return Stitch(streams, own=own, channels=_width(stage) if per_channel else None)

        super().__init__(encoder, tasks, heads, mixer=stitch, after=after, fresh=fresh)
        self.lr_factor = lr_factor

    @property
    def lr_factors(self) -> dict[str, float]:
        """The stitches' factor."""
        return {} if self.lr_factor == 1 else dict.fromkeys(self.unmasked_parameters(), self.lr_factor)


class Stitch(nn.Module):
    """A linear mixture of streams.

    Args:
        streams: number of streams.
        own: weight of a stream in its own mixture at first; the others have the rest of 1 in equal parts.
        channels: number of channels, each with weights of its own; None: all have the same.
    """

    def __init__(self, streams: int, *, own: float, channels: int | None = None) -> None:
        super().__init__()
        self.own = own if streams > 1 else 1.0
        shape = (streams, streams) if channels is None else (streams, streams, channels)
        self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the weights back to where they start."""
        streams = len(self.weight)
        start = torch.full((streams, streams), (1 - self.own) / max(streams - 1, 1)).fill_diagonal_(self.own)
        with torch.no_grad():
            self.weight.copy_(start if self.weight.ndim == 2 else start.unsqueeze(2).expand_as(self.weight))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mix T features (B, ...) or (B, channels, ...) to as many.

        Raises:
            ParameterError: if the features differ in shape, or have another number of channels.
        """
        shapes = {tuple(stream.shape) for stream in features}
        if len(shapes) > 1:
            raise ParameterError(f"streams must have features of one shape to be mixed, found {sorted(shapes)}.")
        stacked = torch.stack(list(features))
        if self.weight.ndim == 2:
            return list(torch.tensordot(self.weight, stacked, dims=1).unbind())
        if stacked.shape[2] != self.weight.shape[2]:
            raise ParameterError(f"expected features of {self.weight.shape[2]} channels, got {stacked.shape[2]}.")
        weight = self.weight.reshape(*self.weight.shape[:2], 1, -1, *(1,) * (stacked.ndim - 3))
        return [(row * stacked).sum(0) for row in weight.unbind()]


def _width(stage: nn.Module) -> int:
    """Number of channels that a stage gives: those of its last layer that tells them.

    Raises:
        ParameterError: if none does.
    """
    for layer in reversed(list(stage.modules())):
        for attribute in ("out_features", "out_channels", "num_features"):
            width = getattr(layer, attribute, None)
            if isinstance(width, int) and not isinstance(layer, nn.Sequential):
                return width
    raise ParameterError(
        "per_channel needs stages whose last layer tells its channels (`out_features`, `out_channels`, "
        "`num_features`). Use per_channel=False."
    )
