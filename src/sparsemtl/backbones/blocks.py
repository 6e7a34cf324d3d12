"""What residual networks are made of: stems and blocks, parameters named as torchvision's."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Stem = Literal["imagenet", "cifar", "deep"]
"""The first layers: `imagenet` is a 7x7 convolution and a max-pooling, both of stride 2; `deep` has three 3x3
convolutions in place of the 7x7 one, the last twice as wide; `cifar` is one 3x3 convolution of stride 1."""


def conv3x3(channels: int, width: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the image's size, but for the stride."""
    return nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def stem_layers(stem: Stem, channels: int, width: int) -> tuple[nn.Module, nn.BatchNorm2d, nn.Module]:
    """Convolution, norm and pooling, as far as the stem has them.

    Args:
        stem: which.
        channels: channels that come in.
        width: channels of the first convolution.
    """
    pooling = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    if stem == "cifar":
        return conv3x3(channels, width), nn.BatchNorm2d(width), nn.Identity()
    if stem == "imagenet":
        first = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        return first, nn.BatchNorm2d(width), pooling
    deep = nn.Sequential(
        conv3x3(channels, width, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv3x3(width, width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv3x3(width, 2 * width),
    )
    return deep, nn.BatchNorm2d(2 * width), pooling


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the first one may halve the resolution.

    Args:
        channels: channels that come in.
        width: channels that go out.
        stride: 1, or 2 to halve the resolution.
        dilations: of the first convolution and of the second.
    """

    expansion = 1
    """Channels that go out for one of `width`."""

    def __init__(self, channels: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stride=stride, dilation=dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, dilation=dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, width, H / stride, W / stride), sides rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, the last of which quadruples the channels, beside a shortcut.

    The 3x3 convolution has the stride, as in torchvision; in He et al. (2016) the first one has it.

    Args:
        channels: channels that come in.
        width: channels of the 3x3 convolution; four times as many go out.
        stride: 1, or 2 to halve the resolution.
        dilations: of the 3x3 convolution; the second number is for blocks that have two of them.
    """

    expansion = 4
    """Channels that go out for one of `width`."""

    def __init__(self, channels: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride, dilation=dilations[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _projection(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, 4 * width, H / stride, W / stride), sides rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + shortcut)


Block = type[BasicBlock] | type[Bottleneck]


def _projection(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block that changes shapes."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out))
