"""The small head of SegNet experiments."""

from __future__ import annotations

from torch import nn

from sparsemtl.heads.dense import DenseHead
from sparsemtl.registry.parameters import Count, validated


class ConvolutionHead(DenseHead):
    """A 3x3 convolution and a 1x1 one for every pixel, nothing between them (Liu et al. 2019, MTAN).

    It is the head of the CityScapes experiments of MTAN, Maximum Roaming and FSMTL. Convolutions start from Xavier's
    normal distribution, biases from zero, as in Maximum Roaming's code.

    Args:
        features: channels of the feature map.
        outputs: channels of the outputs.
        stride: pixels of a side that one position of the map covers.
        hidden: channels between the convolutions, as many as features by default.

    Example:
        >>> ConvolutionHead(16, 5, 1)(torch.rand(2, 16, 32, 48)).shape
        torch.Size([2, 5, 32, 48])
    """

    @validated
    def __init__(self, features: Count, outputs: Count, stride: Count | None, *, hidden: Count | None = None) -> None:
        width = hidden or features
        layers = (
            nn.Conv2d(features, width, kernel_size=3, padding=1),
            nn.Conv2d(width, outputs, kernel_size=1),
        )
        super().__init__(stride, *layers)
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
