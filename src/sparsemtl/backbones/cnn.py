"""Small convolutional network, for images of 8x8 to 64x64 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.backbones.shapes import image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Counts, validated


class CNN(nn.Module):
    """Blocks of 3x3 convolution, (batch norm) and ReLU, max-pooling between them, averaged over positions.

    Examples:
        >>> CNN((1, 28, 28), widths=[16, 32])(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 32])
    """

    @validated
    def __init__(
        self,
        input_shape: Annotated[
            Sequence[int], Doc("(channels, height, width) of one image, each side at least 2^(blocks - 1) pixels.")
        ],
        *,
        widths: Annotated[Counts, Doc("Channels of every block; the last is the width of the features.")] = (
            32,
            64,
            128,
        ),
        norm: Annotated[bool, Doc("Add batch normalisation after every convolution, which then has no bias.")] = True,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("CNN", input_shape)
        smallest = 2 ** (len(widths) - 1)
        if min(height, width) < smallest:
            raise ParameterError(
                f"CNN with {len(widths)} widths halves an image {len(widths) - 1} times and needs at least "
                f"{smallest}x{smallest} pixels, got {height}x{width}. Give fewer widths."
            )
        layers: list[nn.Module] = []
        for features in widths:
            if layers:
                layers.append(nn.MaxPool2d(2))
            layers.append(nn.Conv2d(channels, features, kernel_size=3, padding=1, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(features))
            layers.append(nn.ReLU())
            channels = features
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_features = channels

    @property
    def sequence(self) -> nn.Sequential:
        """Layers of the network."""
        return self.layers

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, *input_shape) to features (B, out_features)."""
        features: Tensor = self.layers(x)
        return features
