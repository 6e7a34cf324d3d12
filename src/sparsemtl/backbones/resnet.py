"""Residual networks (He et al. 2016) without a classifier, parameters named as torchvision's.

They give features averaged over positions, or, for tasks that answer for every pixel, a feature map whose stride is
chosen: instead of halving the resolution, a stage then dilates its convolutions, by which no weight changes its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemtl.backbones.blocks import BasicBlock, Block, Bottleneck, Stem, stem_layers
from sparsemtl.backbones.shapes import check_sides, check_widths, image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, validated

fx.wrap("check_sides")  # a traced network goes on to check its images


class ResNet(nn.Module):
    """Four stages of residual blocks, each stage twice as wide as the one before.

    Convolutions start from He's normal distribution over their outgoing connections, norms from scale 1 and
    shift 0.

    Args:
        input_shape: (channels, height, width) of one image. The network runs on images of any size; only the
            channels are built in. A feature map asks for sides that are multiples of its stride.
        depths: blocks in each of the four stages.
        block: `BasicBlock`, or `Bottleneck`, whose features are four times as wide.
        stem: the first layers. `imagenet` and `deep` shrink an image by 4 before the first stage; `cifar` keeps its
            size, which suits images of 64x64 pixels and less.
        width: channels of the first stage; 64 is the published network.
        output_stride: pixels between two neighbours in the feature map that the network gives, which dilation keeps
            at this; None averages the features over positions. The stem and each of the last three stages double or
            keep it: 4, 8, 16 or 32, after the stem `cifar` 1, 2, 4 or 8.
        dilate_entry: whether the convolution that lost its stride is dilated as well as those behind it. Without,
            as in torchvision, the network computes what the one of full stride does, and more positions of it.

    Attributes:
        out_features: channels of the features, 8 times `width`, with bottlenecks 32 times.
        stride: `output_stride`.
    """

    @validated
    def __init__(
        self,
        input_shape: Sequence[int],
        *,
        depths: Sequence[Count],
        block: Block = BasicBlock,
        stem: Stem = "imagenet",
        width: Count = 64,
        output_stride: Count | None = None,
        dilate_entry: bool = False,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("ResNet", input_shape)
        check_widths("ResNet", "depths", depths)
        if len(depths) != 4:
            raise ParameterError(f"ResNet has four stages, got {len(depths)} depths: {depths!r}.")
        plan = _resolutions(stem, output_stride, dilate_entry)
        self.conv1, self.bn1, self.maxpool = stem_layers(stem, channels, width)
        channels = self.bn1.num_features
        stages = []
        for stage, (depth, resolution) in enumerate(zip(depths, plan, strict=True)):
            stages.append(_stage(block, channels, width * 2**stage, depth, resolution))
            channels = block.expansion * width * 2**stage
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.out_features = channels
        self.stride = output_stride
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def stages(self) -> dict[str, nn.Module]:
        """Its four stages, the stem before the first, and the mean over positions last where there is one."""
        stem = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.maxpool)
        stages: dict[str, nn.Module] = {"layer1": nn.Sequential(stem, self.layer1)}
        stages.update(layer2=self.layer2, layer3=self.layer3, layer4=self.layer4)
        return stages if self.stride is not None else {**stages, "avgpool": nn.Sequential(self.avgpool, nn.Flatten())}

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to features (B, out_features), or (B, out_features, H / stride, W / stride).

        Raises:
            ParameterError: if the stride does not divide the images' sides, so that no head could give them back.
        """
        if self.stride is not None:
            check_sides("ResNet", x, self.stride)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x if self.stride is not None else self.avgpool(x).flatten(1)


@dataclass(frozen=True)
class _Resolution:
    """How a stage treats the resolution.

    Attributes:
        stride: of its first block.
        entry: dilation of the convolution that has, or had, this stride.
        dilation: of all later ones.
    """

    stride: int
    entry: int
    dilation: int


def _resolutions(stem: Stem, output_stride: int | None, dilate_entry: bool) -> list[_Resolution]:
    """The four stages' strides, and from where on dilation replaces them."""
    reached = 1 if stem == "cifar" else 4
    possible = [reached * factor for factor in (1, 2, 4, 8)]
    if output_stride is not None and output_stride not in possible:
        raise ParameterError(
            f"The 'output_stride' parameter of ResNet with stem={stem!r} must be one of "
            f"{', '.join(map(str, possible))}, or None for features without positions. Got {output_stride!r} instead."
        )
    limit = output_stride or possible[-1]
    plan, dilation = [], 1
    for stride in (1, 2, 2, 2):
        entry = dilation
        if reached * stride > limit:
            dilation *= stride
            plan.append(_Resolution(1, dilation if dilate_entry else entry, dilation))
        else:
            reached *= stride
            plan.append(_Resolution(stride, entry, dilation))
    return plan


def _stage(block: Block, channels: int, width: int, depth: int, resolution: _Resolution) -> nn.Sequential:
    later = (resolution.dilation, resolution.dilation)
    first = block(channels, width, stride=resolution.stride, dilations=(resolution.entry, resolution.dilation))
    return nn.Sequential(first, *(block(block.expansion * width, width, dilations=later) for _ in range(depth - 1)))


def resnet18(
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    stem: Stem = "imagenet",
    width: Count = 64,
    output_stride: Count | None = None,
) -> ResNet:
    """ResNet-18: 2, 2, 2 and 2 blocks, 11.2 million parameters at width 64 (He et al. 2016).

    Arguments are those of `ResNet`.

    Example:
        >>> resnet18((3, 64, 64), width=8)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64])
        >>> resnet18((3, 64, 64), width=8, output_stride=8)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64, 8, 8])
    """
    return ResNet(input_shape, depths=(2, 2, 2, 2), stem=stem, width=width, output_stride=output_stride)


def resnet34(
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    stem: Stem = "imagenet",
    width: Count = 64,
    output_stride: Count | None = None,
) -> ResNet:
    """ResNet-34: 3, 4, 6 and 3 blocks, 21.3 million parameters at width 64 (He et al. 2016).

    Arguments are those of `ResNet`.
    """
    return ResNet(input_shape, depths=(3, 4, 6, 3), stem=stem, width=width, output_stride=output_stride)


def resnet50(
    input_shape: Sequence[int] = (3, 224, 224),
    *,
    stem: Stem = "imagenet",
    width: Count = 64,
    output_stride: Count | None = None,
) -> ResNet:
    """ResNet-50: 3, 4, 6 and 3 bottlenecks, 23.5 million parameters at width 64.

    Arguments are those of `ResNet`. With `output_stride=8` it is the backbone of torchvision's DeepLabV3 and FCN.
    """
    return ResNet(
        input_shape, depths=(3, 4, 6, 3), block=Bottleneck, stem=stem, width=width, output_stride=output_stride
    )


def resnet50_d(input_shape: Sequence[int] = (3, 256, 256), *, width: Count = 64, output_stride: Count = 8) -> ResNet:
    """Dilated ResNet-50 with a deep stem, as in Less is More (Upadhyay et al. 2023): a map of 2048 channels.

    Three 3x3 convolutions of 64, 64 and 128 channels stand in place of the 7x7 one. At the output stride of 8 the
    third stage dilates its 3x3 convolutions by 2 and the fourth by 4, their first ones included.

    Args:
        input_shape: (channels, height, width) of one image. The network runs on images of any size whose sides are
            multiples of the stride; only the channels are built in.
        width: channels of the first convolution. Features are 32 times as wide.
        output_stride: pixels between two neighbours in the feature map: 4, 8, 16 or 32.

    Differences from the paper:
        - Convolutions start from He's normal distribution, like all our ResNets; the paper's code leaves them at
          torch's default.

    The network of He et al. (2019) that first had the name ResNet-D also averages before it projects a shortcut of
    stride 2; the paper's has plain ones.

    Example:
        >>> resnet50_d(width=2)(torch.rand(1, 3, 64, 48)).shape
        torch.Size([1, 64, 8, 6])
    """
    return ResNet(
        input_shape,
        depths=(3, 4, 6, 3),
        block=Bottleneck,
        stem="deep",
        width=width,
        output_stride=output_stride,
        dilate_entry=True,
    )
