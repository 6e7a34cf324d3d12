"""A head of several linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sparsemtl.backbones.shapes import check_widths
from sparsemtl.heads.linear import pooled
from sparsemtl.registry.parameters import Count, validated


class MLPHead(nn.Module):
    """Linear layers with ReLU between them, the tower of MMoE and PBFS; maps are averaged over positions first.

    Args:
        features: width of the features.
        outputs: outputs a sample.
        stride: not asked for.
        widths: of the layers before the last.

    Example:
        >>> MLPHead(16, 3, None, widths=[8])(torch.rand(5, 16)).shape
        torch.Size([5, 3])
    """

    @validated
    def __init__(
        self, features: Count, outputs: Count, stride: Count | None = None, *, widths: Sequence[Count] = (8,)
    ) -> None:
        super().__init__()
        check_widths("MLPHead", "widths", widths)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise([features, *widths]):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, features) or (B, features, H, W) to outputs (B, outputs)."""
        outputs: Tensor = self.layers(pooled(features))
        return outputs
