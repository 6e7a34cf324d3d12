"""VGG networks (Simonyan and Zisserman 2015) without the last layer, parameters named as torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sparsemtl.backbones.shapes import check_widths, image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Share, validated

FACTORS = (1, 2, 4, 8, 8)
"""Channels of the five stages, as multiples of the first one's."""
CLASSIFIER = ("classifier.0", "classifier.3", "classifier.6")
"""torchvision's fully connected layers, the last of which gives the classes."""
POOLINGS = (nn.MaxPool2d, nn.Identity)
"""What ends a stage; the second where an image is too small to be halved."""
MOST_POSITIONS = 7
"""Rows and columns of the map that the first fully connected layer of the published networks reads."""


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with a 2x2 max-pooling behind each, then, if asked for, fully connected layers.

    Small images: a pooling that would find a map of one row or one column is left out, so a 28x28 image is halved
    four times and not five. Without fully connected layers the features are the last map's mean over positions. With
    them, the map is first averaged to a fixed grid, `positions`, so that the network runs on images of any size that
    is not smaller than the one it was built for.

    Convolutions start from He's normal distribution over their outgoing connections, fully connected layers from the
    same over their incoming ones, biases from zero, norms from scale 1 and shift 0.

    Args:
        input_shape: (channels, height, width) of one image.
        depths: convolutions in each of the five stages.
        width: channels of the first stage; the five have 1, 2, 4, 8 and 8 times as many. 64 is the published network.
        norm: put batch normalisation after every convolution.
        fc: widths of the fully connected layers, each followed by ReLU and dropout; the published networks have
            [4096, 4096] before the last layer, which is a task's head here. None: no such layers.
        dropout: probability of dropping a number behind a fully connected layer, in [0, 1).
        positions: rows and columns of the grid that the first fully connected layer reads; by default those of the
            map that an image of `input_shape` gives, at most 7. torchvision's have 7, whatever the image.

    Attributes:
        out_features: width of the features: the last of `fc`, or 8 times `width`.
        left_out_of_torchvision: parts of torchvision's networks that this one has no counterpart of.

    Differences from the paper:
        - torchvision starts fully connected layers from a normal distribution of standard deviation 0.01, which is
          meant for 4096 of them; He's suits any width.
    """

    @validated
    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        depths: Sequence[Count],
        width: Count = 64,
        norm: bool = True,
        fc: Sequence[Count] | None = None,
        dropout: Share = 0.5,
        positions: Count | None = None,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape("VGG", input_shape)
        check_widths("VGG", "depths", depths)
        if len(depths) != len(FACTORS):
            raise ParameterError(f"VGG has five stages, got {len(depths)} depths: {depths!r}.")
        layers: list[nn.Module] = []
        for depth, factor in zip(depths, FACTORS, strict=True):
            layers += _convolutions(channels, factor * width, depth, norm=norm)
            pooled = min(height, wide) > 1
            layers.append(nn.MaxPool2d(2) if pooled else nn.Identity())  # later layers keep their numbers
            height, wide = (height // 2, wide // 2) if pooled else (height, wide)
            channels = factor * width
        if fc is not None:
            check_widths("VGG", "fc", fc)
        widths = list(fc or ())
        grid = _grid(positions, height, wide) if widths else (1, 1)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = _fully_connected(channels * grid[0] * grid[1], widths, dropout)
        self.out_features = [channels, *widths][-1]
        self.left_out_of_torchvision = CLASSIFIER[len(widths) :]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                outgoing = isinstance(module, nn.Conv2d)
                nn.init.kaiming_normal_(module.weight, mode="fan_out" if outgoing else "fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def stages(self) -> dict[str, nn.Module]:
        """Its five stages with their poolings, then every fully connected layer, or the mean over positions."""
        ends = [place for place, layer in enumerate(self.features, start=1) if isinstance(layer, POOLINGS)]
        stages: dict[str, nn.Module] = {
            f"stage{number}": self.features[first:last]
            for number, (first, last) in enumerate(pairwise([0, *ends]), start=1)
        }
        averaged: list[nn.Module] = [self.avgpool, nn.Flatten()]
        layers = list(self.classifier)
        for number in range(1, len(layers) // 3 + 1):
            stages[f"fc{number}"] = nn.Sequential(
                *(averaged if number == 1 else ()), *layers[3 * number - 3 : 3 * number]
            )
        return stages if layers else {**stages, "avgpool": nn.Sequential(*averaged)}

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to features (B, out_features)."""
        features: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return features


def _convolutions(channels: int, out: int, depth: int, *, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, out, kernel_size=3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(out))
        layers.append(nn.ReLU())
        channels = out
    return layers


def _grid(positions: int | None, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that the first fully connected layer reads."""
    if positions is not None:
        return positions, positions
    return min(height, MOST_POSITIONS), min(width, MOST_POSITIONS)


def _fully_connected(features: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers)


def vgg11(
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    width: Count = 64,
    norm: bool = True,
    fc: Sequence[Count] | None = None,
    dropout: Share = 0.5,
    positions: Count | None = None,
) -> VGG:
    """VGG-11: 1, 1, 2, 2 and 2 convolutions, 9.2 million weights at width 64 (Simonyan and Zisserman 2015).

    Arguments are those of `VGG`. torchvision's `vgg11` has `norm: false`, its `vgg11_bn` has it.

    Example:
        >>> vgg11((1, 28, 28), width=4)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 32])
    """
    return VGG(input_shape, depths=(1, 1, 2, 2, 2), width=width, norm=norm, fc=fc, dropout=dropout, positions=positions)


def vgg13(
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    width: Count = 64,
    norm: bool = True,
    fc: Sequence[Count] | None = None,
    dropout: Share = 0.5,
    positions: Count | None = None,
) -> VGG:
    """VGG-13: two convolutions in every stage, 9.4 million weights at width 64 (Simonyan and Zisserman 2015).

    Arguments are those of `VGG`. torchvision's `vgg13` has `norm: false`, its `vgg13_bn` has it.
    """
    return VGG(input_shape, depths=(2, 2, 2, 2, 2), width=width, norm=norm, fc=fc, dropout=dropout, positions=positions)


def vgg16(
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    width: Count = 64,
    norm: bool = True,
    fc: Sequence[Count] | None = None,
    dropout: Share = 0.5,
    positions: Count | None = None,
) -> VGG:
    """VGG-16: 2, 2, 3, 3 and 3 convolutions, 14.7 million weights at width 64 (Simonyan and Zisserman 2015).

    Arguments are those of `VGG`. torchvision's `vgg16` has `norm: false`, its `vgg16_bn` has it.
    """
    return VGG(input_shape, depths=(2, 2, 3, 3, 3), width=width, norm=norm, fc=fc, dropout=dropout, positions=positions)


def vgg5(
    input_shape: Sequence[int] = (3, 64, 64),
    *,
    width: Count = 64,
    norm: bool = False,
    fc: Sequence[Count] | None = (512, 512),
    dropout: Share = 0.5,
    positions: Count | None = None,
) -> VGG:
    """VGG-5: five convolutions, each with a pooling, and two fully connected layers, as in DAMTL (Feng and Chen).

    Arguments are those of `VGG`.

    Differences from the paper:
        - The paper's figure gives no width of the fully connected layers; 512 is ours.
        - A pooling that would find a single row or column is left out.

    Example:
        >>> vgg5((1, 28, 28), width=4, fc=[16, 8])(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 8])
    """
    return VGG(input_shape, depths=(1, 1, 1, 1, 1), width=width, norm=norm, fc=fc, dropout=dropout, positions=positions)
