"""The head that tasks have by default."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.errors import ParameterError


class LinearHead(nn.Linear):
    """A linear layer on an encoder's features; feature maps (B, C, ...) are averaged over their positions first."""

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) or (B, F, H, W) to outputs (B, out_features)."""
        return F.linear(pooled(features), self.weight, self.bias)


class LazyLinearHead(nn.LazyLinear):
    """A `LinearHead` whose width is learned from the first batch, for encoders that do not tell theirs."""

    cls_to_become = LinearHead
    forward = LinearHead.forward  # type: ignore[assignment]

    def initialize_parameters(self, features: Tensor) -> None:
        """Take the width from the first features."""
        super().initialize_parameters(pooled(features))


def pooled(features: Tensor) -> Tensor:
    """Average features over their positions: (B, F, ...) -> (B, F)."""
    if not isinstance(features, Tensor) or features.ndim not in (2, 4, 5):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ParameterError(
            "The default heads read features of shape (batch, width) or maps (batch, channels, height, width); "
            f"the encoder gave {found}. Pass heads={{task: module}} that read what it gives."
        )
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def linear_head(features: int, outputs: int, stride: int | None) -> LinearHead:
    """A linear layer, on features or on the mean of a feature map over its positions.

    Args:
        features: width of the features.
        outputs: outputs a sample.
        stride: not asked for.
    """
    return LinearHead(features, outputs)
