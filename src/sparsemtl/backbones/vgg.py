"""VGG networks (Simonyan and Zisserman 2015) without the last layer, with torchvision's names of weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, TypedDict

from torch import Tensor, nn
from typing_extensions import Doc, Unpack

from sparsemtl.backbones.shapes import image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Counts, Default, Share, validated

_FACTORS = (1, 2, 4, 8, 8)
"""Channels of the five stages over those of the first."""
_CLASSIFIER = ("classifier.0", "classifier.3", "classifier.6")
"""torchvision's fully connected layers, the last of which has the classes as outputs."""
_POOLINGS = (nn.MaxPool2d, nn.Identity)
"""Last modules of stages; the second one where an image is too small to be halved."""
_MOST_POSITIONS = 7
"""Rows and columns that the first fully connected layer of the published networks reads."""


class _CommonOptions(TypedDict, total=False):
    width: Annotated[
        Count,
        Default(64),
        Doc(
            "Channels of the first stage; the five stages have 1, 2, 4, 8 and 8 times as many. 64 in the published "
            "networks."
        ),
    ]
    dropout: Annotated[
        Share, Default(0.5), Doc("Probability of dropping a number behind a fully connected layer, in [0, 1).")
    ]
    positions: Annotated[
        Count | None,
        Default(None),
        Doc(
            "Rows and columns of the grid that the first fully connected layer reads; by default those of the map of "
            "an image of `input_shape`, at most 7. torchvision's networks have 7 for every image."
        ),
    ]


_Norm = Annotated[bool, Doc("Add batch normalisation after every convolution.")]
_Widths = Annotated[
    Counts | None,
    Doc(
        "Widths of the fully connected layers, each followed by ReLU and dropout, None for no such layers. The "
        "published networks have [4096, 4096] before the last layer, which is the head of a task here."
    ),
]


class VGGOptions(_CommonOptions, total=False):
    """Options of every VGG network."""

    norm: Annotated[_Norm, Default(True)]
    fc: Annotated[_Widths, Default(None)]


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each with a 2x2 max-pooling, then optional fully connected layers.

    Small images: a pooling of a map of one row or one column is left out, so a 28x28 image is halved four times, not
    five. Without fully connected layers the features are the mean of the last map over positions. With them, the map is
    first averaged to a fixed grid, `positions`, so that the network also runs on larger images than `input_shape`.

    Convolutions are drawn from He's normal distribution over their outgoing connections, fully connected layers from
    the same over their incoming connections; biases are zero, norms have scale 1 and shift 0.

    Attributes:
        out_features: width of the features: the last of `fc`, or 8 times `width`.
        left_out_of_torchvision: parts of torchvision's networks that this network lacks.

    Differences from the paper:
        - torchvision draws fully connected layers from a normal distribution of standard deviation 0.01, which suits
          layers of width 4096; He's suits any width.
    """

    @validated
    def __init__(
        self,
        input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")],
        *,
        depths: Annotated[Counts, Doc("Convolutions in each of the five stages.")],
        **options: Unpack[VGGOptions],
    ) -> None:
        super().__init__()
        fc, width = options["fc"], options["width"]
        channels, height, wide = image_shape("VGG", input_shape)
        if len(depths) != len(_FACTORS):
            raise ParameterError(f"VGG has five stages, got {len(depths)} depths: {depths!r}.")
        layers: list[nn.Module] = []
        for depth, factor in zip(depths, _FACTORS, strict=True):
            layers += _convolutions(channels, factor * width, depth, norm=options["norm"])
            pooled = min(height, wide) > 1
            layers.append(nn.MaxPool2d(2) if pooled else nn.Identity())  # keeps the numbers of later layers
            height, wide = (height // 2, wide // 2) if pooled else (height, wide)
            channels = factor * width
        widths = list(fc or ())
        grid = _grid(options["positions"], height, wide) if widths else (1, 1)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = _fully_connected(channels * grid[0] * grid[1], widths, options["dropout"])
        self.out_features = [channels, *widths][-1]
        self.left_out_of_torchvision = _CLASSIFIER[len(widths) :]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from PyTorch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                outgoing = isinstance(module, nn.Conv2d)
                nn.init.kaiming_normal_(module.weight, mode="fan_out" if outgoing else "fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def stages(self) -> dict[str, nn.Module]:
        """Return the five stages with their poolings by name, then every fully connected layer or the mean."""
        ends = [place for place, layer in enumerate(self.features, start=1) if isinstance(layer, _POOLINGS)]
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
    """Return rows and columns that the first fully connected layer reads."""
    if positions is not None:
        return positions, positions
    return min(height, _MOST_POSITIONS), min(width, _MOST_POSITIONS)


def _fully_connected(features: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
        features = width
    return nn.Sequential(*layers)


def vgg11(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 224, 224),
    **options: Unpack[VGGOptions],
) -> VGG:
    """Return a VGG-11: 1, 1, 2, 2 and 2 convolutions, 9.2 million weights at width 64 (Simonyan and Zisserman 2015).

    torchvision's `vgg11` has `norm: false`, its `vgg11_bn` has `norm: true`.

    Examples:
        >>> vgg11((1, 28, 28), width=4)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 32])
    """
    return VGG(input_shape, depths=(1, 1, 2, 2, 2), **options)


def vgg13(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 224, 224),
    **options: Unpack[VGGOptions],
) -> VGG:
    """Return a VGG-13: two convolutions in every stage, 9.4 million weights at width 64 (Simonyan and Zisserman 2015).

    torchvision's `vgg13` has `norm: false`, its `vgg13_bn` has `norm: true`.
    """
    return VGG(input_shape, depths=(2, 2, 2, 2, 2), **options)


def vgg16(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 224, 224),
    **options: Unpack[VGGOptions],
) -> VGG:
    """Return a VGG-16: 2, 2, 3, 3 and 3 convolutions, 14.7 million weights at width 64 (Simonyan and Zisserman 2015).

    torchvision's `vgg16` has `norm: false`, its `vgg16_bn` has `norm: true`.
    """
    return VGG(input_shape, depths=(2, 2, 3, 3, 3), **options)


def vgg5(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 64, 64),
    *,
    norm: _Norm = False,
    fc: _Widths = (512, 512),
    **options: Unpack[_CommonOptions],
) -> VGG:
    """Return a VGG-5: five convolutions, each with a pooling, and two linear layers, as in DAMTL (Feng and Chen).

    Differences from the paper:
        - The paper's figure has no width of the fully connected layers; 512 is ours.
        - A pooling of a map of one row or one column is left out.

    Examples:
        >>> vgg5((1, 28, 28), width=4, fc=[16, 8])(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 8])
    """
    return VGG(input_shape, depths=(1, 1, 1, 1, 1), norm=norm, fc=fc, **options)
