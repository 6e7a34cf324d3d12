"""A head that answers once an image, from a feature map."""

from __future__ import annotations

from torch import Tensor, nn

from sparsemtl.heads.dense import need_map
from sparsemtl.registry.parameters import Count, Share, validated


class ClassificationHead(nn.Module):
    """A 3x3 convolution, pooling and two linear layers on a feature map (Upadhyay et al. 2023, Less is More).

    Args:
        features: channels of the feature map.
        outputs: outputs an image.
        stride: pixels of a side that one position of the map covers; any, but there must be positions.
        channels: channels of the convolution.
        hidden: width between the linear layers.
        dropout: probability of dropping a channel's mean, in [0, 1).
        hidden_dropout: probability of dropping a number between the linear layers, in [0, 1).

    Differences from the paper:
        - Outputs are logits, as losses of classification tasks read them; the paper's code puts a sigmoid here and
          another one in the loss.
        - The 2x2 max-pooling also reads the last row and column of a map of odd size.

    Example:
        >>> ClassificationHead(16, 5, 8)(torch.rand(2, 16, 4, 6)).shape
        torch.Size([2, 5])
    """

    @validated
    def __init__(
        self,
        features: Count,
        outputs: Count,
        stride: Count | None,
        *,
        channels: Count = 64,
        hidden: Count = 32,
        dropout: Share = 0.6,
        hidden_dropout: Share = 0.4,
    ) -> None:
        super().__init__()
        need_map("ClassificationHead", stride)
        self.layers = nn.Sequential(
            nn.Conv2d(features, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Dropout(hidden_dropout),
            nn.Linear(hidden, outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, features, H / stride, W / stride) to outputs (B, outputs)."""
        outputs: Tensor = self.layers(features)
        return outputs
