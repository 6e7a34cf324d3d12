"""SegNet: a convolutional encoder, and a decoder that unpools maxima to their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.backbones.shapes import image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, validated

_DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions before each pooling; the decoder has as many behind the unpooling."""


class SegNet(nn.Module):
    """SegNet (Badrinarayanan et al. 2017): 13 convolutions down, 13 up, features per pixel.

    The encoder is VGG-16 with batch norm, its weights named `features.*` as in torchvision's `vgg16_bn`. The decoder
    unpools each map to the places of the maxima of the encoder's 2x2 max-pooling, with zeros elsewhere. Weights are
    drawn from Xavier's normal distribution, biases are zero, as in Maximum Roaming's code: this is the network of its
    and FSMTL's CityScapes experiments.

    Attributes:
        out_features: channels of the features, `width`.
        stride: 1: features are as large as the image.

    Differences from the paper:
        - The first convolution behind an unpooling has fewer channels, as in Maximum Roaming's code, not the last one.

    Examples:
        >>> SegNet((3, 33, 48), width=4)(torch.rand(2, 3, 33, 48)).shape
        torch.Size([2, 4, 33, 48])
    """

    not_in_torchvision = ("decoder",)
    """Parts that keep their weights in `load_torchvision` if the file lacks them."""

    @validated
    def __init__(
        self,
        input_shape: Annotated[
            Sequence[int], Doc("(channels, height, width) of one image, each side at least 32 pixels.")
        ] = (3, 128, 256),
        *,
        width: Annotated[
            Count,
            Doc(
                "Channels of the first stage; the five stages have 1, 2, 4, 8 and 8 times as many. 64 in the published "
                "network."
            ),
        ] = 64,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape("SegNet", input_shape)
        smallest = 2 ** len(_DEPTHS)
        if min(height, wide) < smallest:
            raise ParameterError(
                f"SegNet halves an image {len(_DEPTHS)} times and needs at least {smallest}x{smallest} pixels, "
                f"got {height}x{wide}."
            )
        down = [factor * width for factor in (1, 2, 4, 8, 8)]
        up = [factor * width for factor in (8, 4, 2, 1, 1)]
        encoder: list[nn.Module] = []
        for depth, out in zip(_DEPTHS, down, strict=True):
            encoder += [*_convolutions(channels, out, depth), nn.MaxPool2d(2, return_indices=True)]
            channels = out
        self.features = nn.Sequential(*encoder)
        self.decoder = nn.ModuleList()
        for depth, out in zip(reversed(_DEPTHS), up, strict=True):
            self.decoder.append(nn.Sequential(*_convolutions(channels, out, depth)))
            channels = out
        self.out_features = channels
        self.stride = 1
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from PyTorch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to features (B, out_features, H, W)."""
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[-2:]
                x, indices = layer(x)
                found.append((indices, size))
            else:
                x = layer(x)
        for convolutions in self.decoder:
            x = convolutions(unpooled(x, *found.pop()))
        return x


def unpooled(x: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """Return maxima at their places before a max-pooling without overlap, zeros elsewhere.

    Same as `F.max_unpool2d`, which PyTorch refuses with deterministic algorithms, as in general two maxima may have one
    place.

    Args:
        x: maxima (B, C, h, w).
        indices: places of the maxima in the flattened map (B, C, h, w).
        size: height and width of the map before pooling.
    """
    height, width = size[0], size[1]
    empty = x.new_zeros(x.shape[0], x.shape[1], height * width)
    filled = empty.scatter(2, indices.flatten(2), x.flatten(2))
    return filled.view(x.shape[0], x.shape[1], height, width)


def _convolutions(channels: int, out: int, depth: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, out, kernel_size=3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        channels = out
    return layers
