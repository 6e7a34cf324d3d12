"""Stems and blocks of residual networks, with torchvision's names of weights."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Stem = Literal["imagenet", "cifar", "deep"]
"""First layers: `imagenet` is a 7x7 convolution and a max-pooling, both of stride 2; `deep` has three 3x3 convolutions
instead of the 7x7 convolution, the last twice as wide; `cifar` is one 3x3 convolution of stride 1."""


def _conv3x3(channels: int, width: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias, padded to keep the size of the image at stride 1."""
    return nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def stem_layers(stem: Stem, channels: int, width: int) -> tuple[nn.Module, nn.BatchNorm2d, nn.Module]:
    """Return the convolutions, the norm and the pooling of a stem.

    Args:
        stem: kind of the stem.
        channels: input channels.
        width: channels of the first convolution.
    """
    pooling = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    if stem == "cifar":
        return _conv3x3(channels, width), nn.BatchNorm2d(width), nn.Identity()
    if stem == "imagenet":
        first = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
        return first, nn.BatchNorm2d(width), pooling
    deep = nn.Sequential(
        _conv3x3(channels, width, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _conv3x3(width, width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _conv3x3(width, 2 * width),
    )
    return deep, nn.BatchNorm2d(2 * width), pooling


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the first may halve the resolution.

    Args:
        channels: input channels.
        width: output channels.
        stride: 1, or 2 to halve the resolution.
        dilations: dilations of the first and the second convolution.
    """

    expansion = 1
    """Output channels over `width`."""

    def __init__(self, channels: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride=stride, dilation=dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, dilation=dilations[1])
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, width, H / stride, W / stride), sides rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, the last of which has four times the channels, with a shortcut.

    The 3x3 convolution has the stride, as in torchvision; in He et al. (2016) the first convolution has it.

    Args:
        channels: input channels.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: 1, or 2 to halve the resolution.
        dilations: dilation of the 3x3 convolution, and a second number that only `BasicBlock` uses.
    """

    expansion = 4
    """Output channels over `width`."""

    def __init__(self, channels: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride=stride, dilation=dilations[0])
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
    """Return the shortcut of a block that changes the shape, None if the block keeps it."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out))
