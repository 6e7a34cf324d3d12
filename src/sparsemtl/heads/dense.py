"""Base of heads with outputs per pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.errors import ParameterError


class DenseHead(nn.Module):
    """Layers on a feature map, and a bilinear enlargement of their outputs to the size of the image.

    The layers are named `classifier` as in torchvision's segmentation networks, so that their weights fit.

    Args:
        stride: pixels per side of a position of the map.
        layers: modules that keep the size of the map.
    """

    def __init__(self, stride: int | None, *layers: nn.Module) -> None:
        super().__init__()
        self.stride = need_map(type(self).__name__, stride)
        self.classifier = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, features, H / stride, W / stride) to outputs (B, outputs, H, W)."""
        outputs: Tensor = self.classifier(features)
        if self.stride == 1:
            return outputs
        return F.interpolate(outputs, scale_factor=float(self.stride), mode="bilinear", align_corners=False)


def need_map(owner: str, stride: int | None) -> int:
    """Return the stride of a feature map. Raise a ParameterError if it is None, as features have no positions then."""
    if stride is None:
        raise ParameterError(
            f"{owner} reads a feature map, but the encoder has no `stride`. Encoders with a map are 'segnet', "
            "'resnet50-d' and the other resnets with an output_stride. An encoder of your own needs an attribute "
            "`stride`: pixels per side of a position of its map."
        )
    return stride
