"""The head of a fully convolutional network."""

from __future__ import annotations

from torch import nn

from sparsemtl.heads.dense import DenseHead
from sparsemtl.registry.parameters import Count, Share, validated


class FCNHead(DenseHead):
    """A normed 3x3 convolution and a 1x1 one for every pixel, as torchvision's FCN (after Long et al. 2015).

    Parameters are named as in torchvision.

    Args:
        features: channels of the feature map.
        outputs: channels of the outputs.
        stride: pixels of a side that one position of the map covers.
        hidden: channels between the convolutions, a quarter of the features by default.
        dropout: probability of dropping a hidden number, in [0, 1).

    Example:
        >>> FCNHead(16, 5, 8)(torch.rand(2, 16, 4, 6)).shape
        torch.Size([2, 5, 32, 48])
    """

    @validated
    def __init__(
        self,
        features: Count,
        outputs: Count,
        stride: Count | None,
        *,
        hidden: Count | None = None,
        dropout: Share = 0.1,
    ) -> None:
        width = hidden or max(1, features // 4)
        super().__init__(
            stride,
            nn.Conv2d(features, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(width, outputs, kernel_size=1),
        )
