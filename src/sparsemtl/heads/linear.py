"""Default head of tasks without maps."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.errors import ParameterError
from sparsemtl.heads.tokens import TokenFeatures
from sparsemtl.registry.parameters import Count


class LinearHead(nn.Linear):
    """Linear layer on features; feature maps (B, C, ...) are averaged over their positions first."""

    def forward(self, features: Tensor | TokenFeatures) -> Tensor:
        """Map features (B, F) or (B, F, H, W) to outputs (B, out_features)."""
        return F.linear(pooled(_vectors(features)), self.weight, self.bias)


class LazyLinearHead(nn.LazyLinear):
    """`LinearHead` that takes its width from the first batch, for encoders without `out_features`."""

    cls_to_become = LinearHead
    forward = LinearHead.forward  # type: ignore[assignment]

    def initialize_parameters(self, features: Tensor) -> None:
        """Set the width to that of the first features."""
        super().initialize_parameters(pooled(_vectors(features)))


def _vectors(features: Tensor | TokenFeatures) -> Tensor:
    """Return the features that heads of sample tasks read: of sequences the pooled ones."""
    return features.pooled if isinstance(features, TokenFeatures) else features


def pooled(features: Tensor) -> Tensor:
    """Return features averaged over their positions: (B, F, ...) -> (B, F)."""
    if not isinstance(features, Tensor) or features.ndim not in (2, 4, 5):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ParameterError(
            "The default heads read features of shape (batch, width) or maps (batch, channels, height, width); "
            f"the encoder gave {found}. Pass heads={{task: module}} that read such features; `sm.TransformerEncoder` "
            "gives default heads one vector per sequence."
        )
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def linear_head(
    features: Annotated[Count, Doc("Width of the features.")],
    outputs: Annotated[Count, Doc("Outputs per sample.")],
    stride: Annotated[Count | None, Doc("Not used.")],
) -> LinearHead:
    """Return a linear layer on features, or on the mean of a feature map over its positions."""
    return LinearHead(features, outputs)
