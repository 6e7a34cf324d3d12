"""DeepLabV3's head: outputs per pixel from its surroundings at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.errors import ParameterError
from sparsemtl.heads.dense import DenseHead
from sparsemtl.registry.parameters import Count, Share, validated


class DeepLabV3Head(DenseHead):
    """Atrous spatial pyramid pooling, a 3x3 convolution and a 1x1 convolution (Chen et al. 2017).

    Weights have the names of torchvision's DeepLabV3, whose dropout is 0.5; the default is that of Less is More.

    Examples:
        >>> head = DeepLabV3Head(16, 5, 8, channels=4)
        >>> head(torch.rand(2, 16, 4, 6)).shape
        torch.Size([2, 5, 32, 48])
    """

    @validated
    def __init__(
        self,
        features: Annotated[Count, Doc("Channels of the feature map.")],
        outputs: Annotated[Count, Doc("Channels of the outputs.")],
        stride: Annotated[Count | None, Doc("Pixels per side of a position of the map.")],
        *,
        channels: Annotated[Count, Doc("Channels of every branch and of the layers behind the branches.")] = 256,
        rates: Annotated[
            Sequence[Count],
            Doc("Dilation of each 3x3 branch, in positions of the map. The defaults suit a stride of 8."),
        ] = (12, 24, 36),
        dropout: Annotated[Share, Doc("Probability of dropping a number behind the pyramid, in [0, 1).")] = 0.3,
    ) -> None:
        super().__init__(
            stride,
            _Pyramid(features, channels, rates, dropout),
            *_normed(nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)),
            nn.Conv2d(channels, outputs, kernel_size=1),
        )


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: parallel branches with receptive fields of 1, some and all positions.

    Args:
        features: input channels.
        channels: channels of every branch and of the output.
        rates: dilation of each 3x3 branch.
        dropout: probability of dropping a number of the output.
    """

    def __init__(self, features: int, channels: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        point = nn.Sequential(*_normed(nn.Conv2d(features, channels, kernel_size=1, bias=False)))
        atrous = [nn.Sequential(*_normed(_atrous(features, channels, rate))) for rate in rates]
        self.convs = nn.ModuleList([point, *atrous, _ImageLevel(features, channels)])
        merge = nn.Conv2d(len(self.convs) * channels, channels, kernel_size=1, bias=False)
        self.project = nn.Sequential(*_normed(merge), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, features, H, W) to (B, channels, H, W)."""
        projected: Tensor = self.project(torch.cat([branch(x) for branch in self.convs], dim=1))
        return projected


class _ImageLevel(nn.Sequential):
    """Branch with the mean over all positions."""

    def __init__(self, features: int, channels: int) -> None:
        convolution = nn.Conv2d(features, channels, kernel_size=1, bias=False)
        super().__init__(nn.AdaptiveAvgPool2d(1), *_normed(convolution))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            raise ParameterError(
                "DeepLabV3Head cannot train on a batch of one image: its batch norm "
                "reads one number per channel and image. Use larger batches, and drop_last=True in the loader."
            )
        mean = x
        for layer in self:
            mean = layer(mean)
        return mean.expand(-1, -1, x.shape[-2], x.shape[-1])


def _atrous(features: int, channels: int, rate: int) -> nn.Conv2d:
    return nn.Conv2d(features, channels, kernel_size=3, padding=rate, dilation=rate, bias=False)


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
