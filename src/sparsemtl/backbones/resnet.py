"""Residual networks (He et al. 2016) without a classifier, with torchvision's names of weights.

Features are averaged over positions, or, for tasks with outputs per pixel, a map of a given stride: beyond that stride,
a stage dilates its convolutions instead of halving the resolution, which changes the shape of no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

import torch.nn.functional as F
from torch import Tensor, fx, nn
from typing_extensions import Doc, Unpack

from sparsemtl.backbones.blocks import BasicBlock, Block, Bottleneck, Stem, stem_layers
from sparsemtl.backbones.shapes import check_sides, image_shape
from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Count, Counts, Default, validated

fx.wrap("check_sides")  # a traced network checks its images, too


class ResNetOptions(TypedDict, total=False):
    """Options of every residual network."""

    stem: Annotated[
        Stem,
        Default("imagenet"),
        Doc(
            "First layers. `imagenet` and `deep` shrink an image by 4 before the first stage; `cifar` keeps its size, "
            "which suits images of up to 64x64 pixels."
        ),
    ]
    width: Annotated[Count, Default(64), Doc("Channels of the first stage; 64 in the published networks.")]
    output_stride: Annotated[
        Count | None,
        Default(None),
        Doc(
            "Pixels per side of a position of the feature map, limited by dilation; None averages the features over "
            "positions. The stem and each of the last three stages double or keep the stride: 4, 8, 16 or 32, with "
            "the stem `cifar` 1, 2, 4 or 8."
        ),
    ]


class ResNet(nn.Module):
    """Four stages of residual blocks, each stage twice as wide as the one before.

    Convolutions are drawn from He's normal distribution over their outgoing connections; norms have scale 1 and
    shift 0. The network runs on images of any size, with an `output_stride` on sides that are multiples of it.

    Attributes:
        out_features: channels of the features, 8 times `width`, with bottlenecks 32 times.
        stride: `output_stride`.
    """

    @validated
    def __init__(
        self,
        input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")],
        *,
        depths: Annotated[Counts, Doc("Blocks in each of the four stages.")],
        block: Annotated[
            Block, Doc("`BasicBlock`, or `Bottleneck`, whose features are four times as wide.")
        ] = BasicBlock,
        dilate_entry: Annotated[
            bool,
            Doc(
                "Dilate also the convolution that loses its stride. Without, as in torchvision, the network computes "
                "the same features as that of full stride, at more positions."
            ),
        ] = False,
        **options: Unpack[ResNetOptions],
    ) -> None:
        super().__init__()
        stem, width, output_stride = options["stem"], options["width"], options["output_stride"]
        channels, _, _ = image_shape("ResNet", input_shape)
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
        """Draw all weights from PyTorch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def stages(self) -> dict[str, nn.Module]:
        """Return the four stages by name, the first with the stem, and the mean over positions if there is one."""
        stem = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.maxpool)
        stages: dict[str, nn.Module] = {"layer1": nn.Sequential(stem, self.layer1)}
        stages.update(layer2=self.layer2, layer3=self.layer3, layer4=self.layer4)
        return stages if self.stride is not None else {**stages, "avgpool": nn.Sequential(self.avgpool, nn.Flatten())}

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to features (B, out_features), or (B, out_features, H / stride, W / stride).

        Raises:
            ParameterError: if the sides of the images are no multiples of the stride.
        """
        if self.stride is not None:
            check_sides("ResNet", x, self.stride)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x if self.stride is not None else self.avgpool(x).flatten(1)


@dataclass(frozen=True)
class _Resolution:
    """Stride and dilations of a stage.

    Attributes:
        stride: stride of the first block.
        entry: dilation of the convolution with this stride.
        dilation: dilation of all later convolutions.
    """

    stride: int
    entry: int
    dilation: int


def _resolutions(stem: Stem, output_stride: int | None, dilate_entry: bool) -> list[_Resolution]:
    """Return strides and dilations of the four stages."""
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
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 224, 224),
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """Return a ResNet-18: 2, 2, 2 and 2 blocks, 11.2 million parameters at width 64 (He et al. 2016).

    Examples:
        >>> resnet18((3, 64, 64), width=8)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64])
        >>> resnet18((3, 64, 64), width=8, output_stride=8)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64, 8, 8])
    """
    return ResNet(input_shape, depths=(2, 2, 2, 2), **options)


def resnet34(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 224, 224),
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """Return a ResNet-34: 3, 4, 6 and 3 blocks, 21.3 million parameters at width 64 (He et al. 2016)."""
    return ResNet(input_shape, depths=(3, 4, 6, 3), **options)


def resnet50(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 224, 224),
    **options: Unpack[ResNetOptions],
) -> ResNet:
    """Return a ResNet-50: 3, 4, 6 and 3 bottlenecks, 23.5 million parameters at width 64.

    With `output_stride=8` it is the backbone of torchvision's DeepLabV3 and FCN.
    """
    return ResNet(input_shape, depths=(3, 4, 6, 3), block=Bottleneck, **options)


def resnet50_d(
    input_shape: Annotated[Sequence[int], Doc("(channels, height, width) of one image.")] = (3, 256, 256),
    *,
    width: Annotated[Count, Doc("Channels of the first convolution; the features have 32 times as many.")] = 64,
    output_stride: Annotated[Count, Doc("Pixels per side of a position of the feature map: 4, 8, 16 or 32.")] = 8,
) -> ResNet:
    """Return a dilated ResNet-50 with a deep stem, as in Less is More (Upadhyay et al. 2023): a map of 2048 channels.

    The stem has three 3x3 convolutions of 64, 64 and 128 channels. At the output stride of 8 the third stage dilates
    all its 3x3 convolutions by 2 and the fourth by 4.

    Differences from the paper:
        - Convolutions are drawn from He's normal distribution, as in all our ResNets; the paper's code leaves them at
          PyTorch's default.

    The ResNet-D of He et al. (2019) also averages before the projection of a shortcut of stride 2; the paper's network
    has plain shortcuts.

    Examples:
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
