"""DeepLabV3: what a pixel shows, judged by its surroundings at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.heads.dense import DenseHead
from sparsemtl.registry.parameters import Count, Share, validated


class DeepLabV3Head(DenseHead):
    """Atrous spatial pyramid pooling, a 3x3 convolution and a 1x1 one, for every pixel (Chen et al. 2017).

    Parameters are named as in torchvision's DeepLabV3, whose dropout is 0.5; the default is that of Less is More.

    Args:
        features: channels of the feature map.
        outputs: channels of the outputs.
        stride: pixels of a side that one position of the map covers.
        channels: channels of every branch and of the layers behind them.
        rates: dilation of each 3x3 branch, in positions of the map. The defaults suit a stride of 8.
        dropout: probability of dropping a number behind the pyramid, in [0, 1).

    Example:
        >>> head = DeepLabV3Head(16, 5, 8, channels=4)
        >>> head(torch.rand(2, 16, 4, 6)).shape
        torch.Size([2, 5, 32, 48])
    """

    @validated
    def __init__(
        self,
        features: Count,
        outputs: Count,
        stride: Count | None,
        *,
        channels: Count = 256,
        rates: Sequence[Count] = (12, 24, 36),
        dropout: Share = 0.3,
    ) -> None:
        super().__init__(
            stride,
            Pyramid(features, channels, rates, dropout),
            *_normed(nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)),
            nn.Conv2d(channels, outputs, kernel_size=1),
        )


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: branches that see 1, some or all positions around each, side by side.

    Args:
        features: channels that come in.
        channels: channels of every branch, and that go out.
        rates: dilation of each 3x3 branch.
        dropout: probability of dropping a number of what goes out.
    """

    def __init__(self, features: int, channels: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        point = nn.Sequential(*_normed(nn.Conv2d(features, channels, kernel_size=1, bias=False)))
        atrous = [nn.Sequential(*_normed(_atrous(features, channels, rate))) for rate in rates]
        self.convs = nn.ModuleList([point, *atrous, _ImageLevel(features, channels)])
        together = nn.Conv2d(len(self.convs) * channels, channels, kernel_size=1, bias=False)
        self.project = nn.Sequential(*_normed(together), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, features, H, W) to (B, channels, H, W)."""
        projected: Tensor = self.project(torch.cat([branch(x) for branch in self.convs], dim=1))
        return projected


class _ImageLevel(nn.Sequential):
    """The mean over all positions, given to each."""

    def __init__(self, features: int, channels: int) -> None:
        convolution = nn.Conv2d(features, channels, kernel_size=1, bias=False)
        super().__init__(nn.AdaptiveAvgPool2d(1), *_normed(convolution))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            raise ParameterError(
                "DeepLabV3Head cannot train on a batch of one image: it normalises one number a channel over the "
                "batch. Take larger batches, and leave out a last one of a single image (drop_last=True)."
            )
        mean = x
        for layer in self:
            mean = layer(mean)
        return mean.expand(-1, -1, x.shape[-2], x.shape[-1])


def _atrous(features: int, channels: int, rate: int) -> nn.Conv2d:
    return nn.Conv2d(features, channels, kernel_size=3, padding=rate, dilation=rate, bias=False)


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
