"""ResNet-18 and ResNet-34 (He et al. 2016) without a classifier, parameters named as torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.backbones.shapes import check_widths, image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.parameters import Count, validated

Stem = Literal["imagenet", "cifar"]
"""The first layers: `imagenet` is a 7x7 convolution and a max-pooling, both of stride 2; `cifar` a 3x3
convolution of stride 1."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first one may halve the resolution.

    Args:
        channels: channels that come in.
        width: channels that go out.
        stride: 1, or 2 to halve the resolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, width, H / stride, W / stride), sides rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + shortcut)


class ResNet(nn.Module):
    """Four stages of basic blocks, each stage twice as wide as the one before, averaged over positions.

    Convolutions start from He's normal distribution over their outgoing connections, norms from scale 1 and
    shift 0.

    Args:
        input_shape: (channels, height, width) of one image. The network runs on images of any size; only the
            channels are built in.
        depths: blocks in each of the four stages.
        stem: the first layers. `imagenet` shrinks an image by 4 before the first stage; `cifar` keeps its
            size, which suits images of 64x64 pixels and less.
        width: channels of the first stage; 64 is the published network. Features are 8 times as wide.
    """

    @validated
    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        depths: Sequence[Count],
        stem: Stem = "imagenet",
        width: Count = 64,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("ResNet", input_shape)
        check_widths("ResNet", "depths", depths)
        if len(depths) != 4:
            raise ParameterError(f"ResNet has four stages, got {len(depths)} depths: {depths!r}.")
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        first, second, third, fourth = depths
        self.layer1 = _stage(width, width, first, stride=1)
        self.layer2 = _stage(width, 2 * width, second, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, third, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, fourth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.out_features = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to features (B, out_features)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features: Tensor = self.avgpool(x).flatten(1)
        return features


def _stage(channels: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(blocks - 1)))


def resnet18(input_shape: Sequence[int] = (3, 224, 224), *, stem: Stem = "imagenet", width: Count = 64) -> ResNet:
    """ResNet-18: 2, 2, 2 and 2 blocks, 11.2 million parameters at width 64.

    Arguments are those of `ResNet`.
    """
    return ResNet(input_shape, depths=(2, 2, 2, 2), stem=stem, width=width)


def resnet34(input_shape: Sequence[int] = (3, 224, 224), *, stem: Stem = "imagenet", width: Count = 64) -> ResNet:
    """ResNet-34: 3, 4, 6 and 3 blocks, 21.3 million parameters at width 64.

    Arguments are those of `ResNet`.
    """
    return ResNet(input_shape, depths=(3, 4, 6, 3), stem=stem, width=width)
