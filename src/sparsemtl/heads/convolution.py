"""Small head for SegNet's features."""

from __future__ import annotations

from typing import Annotated

from torch import nn
from typing_extensions import Doc

from sparsemtl.heads.dense import DenseHead
from sparsemtl.registry.parameters import Count, validated


class ConvolutionHead(DenseHead):
    """A 3x3 convolution, then a 1x1 convolution, without a nonlinearity between them (Liu et al. 2019, MTAN).

    Head of the CityScapes experiments of MTAN, Maximum Roaming and FSMTL. Weights are drawn from Xavier's normal
    distribution, biases are zero, as in Maximum Roaming's code.

    Examples:
        >>> ConvolutionHead(16, 5, 1)(torch.rand(2, 16, 32, 48)).shape
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
            Count | None, Doc("Channels between the convolutions; by default as many as features.")
        ] = None,
    ) -> None:
        width = hidden or features
        layers = (
            nn.Conv2d(features, width, kernel_size=3, padding=1),
            nn.Conv2d(width, outputs, kernel_size=1),
        )
        super().__init__(stride, *layers)
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
