"""Head of several linear layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.heads.linear import pooled
from sparsemtl.registry.parameters import Count, Counts, validated


class MLPHead(nn.Module):
    """Linear layers with ReLU between them, the tower of MMoE and PBFS; maps are averaged over positions first.

    Examples:
        >>> MLPHead(16, 3, None, widths=[8])(torch.rand(5, 16)).shape
        torch.Size([5, 3])
    """

    @validated
    def __init__(
        self,
        features: Annotated[Count, Doc("Width of the features.")],
        outputs: Annotated[Count, Doc("Outputs per sample.")],
        stride: Annotated[Count | None, Doc("Not used.")] = None,
        *,
        widths: Annotated[Counts, Doc("Widths of the layers before the last.")] = (8,),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in pairwise([features, *widths]):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, features) or (B, features, H, W) to outputs (B, outputs)."""
        outputs: Tensor = self.layers(pooled(features))
        return outputs
