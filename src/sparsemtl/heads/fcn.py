"""Head of a fully convolutional network."""

from __future__ import annotations

from typing import Annotated

from torch import nn
from typing_extensions import Doc

from sparsemtl.heads.dense import DenseHead
from sparsemtl.registry.parameters import Count, Share, validated


class FCNHead(DenseHead):
    """A 3x3 convolution with batch norm and a 1x1 convolution, as torchvision's FCN (after Long et al. 2015).

    Weights have torchvision's names.

    Examples:
        >>> FCNHead(16, 5, 8)(torch.rand(2, 16, 4, 6)).shape
        torch.Size([2, 5, 32, 48])
    """

    @validated
    def __init__(
        self,
        features: Annotated[Count, Doc("Channels of the feature map.")],
        outputs: Annotated[Count, Doc("Channels of the outputs.")],
        stride: Annotated[Count | None, Doc("Pixels per side of a position of the map.")],
        *,
        hidden: Annotated[
            Count | None, Doc("Channels between the convolutions; by default a quarter of the features.")
        ] = None,
        dropout: Annotated[Share, Doc("Probability of dropping a hidden number, in [0, 1).")] = 0.1,
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
