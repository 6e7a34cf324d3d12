"""What all heads that answer for every pixel do alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.errors import ParameterError


class DenseHead(nn.Module):
    """Layers on a feature map, and a bilinear enlargement of their outputs to the size of the image.

    Args:
        stride: pixels of a side that one position of the map covers.
        layers: keep the map's size.

    The layers are called `classifier` as in torchvision's segmentation networks, so that their weights fit.
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
    """Raise a ParameterError if the features have no positions.

    Returns:
        the stride.
    """
    if stride is None:
        raise ParameterError(
            f"{owner} reads a feature map and the encoder gives none: it tells no `stride`. Encoders with a map are "
            "'segnet', 'resnet50-d' and the other resnets with an output_stride; an encoder of your own needs an "
            "attribute `stride`, the pixels of a side that one position of its map covers."
        )
    return stride
