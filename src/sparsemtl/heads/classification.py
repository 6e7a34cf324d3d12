"""Head with one vector of outputs per image, from a feature map."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.heads.dense import need_map
from sparsemtl.registry.parameters import Count, Share, validated


class ClassificationHead(nn.Module):
    """A 3x3 convolution, pooling and two linear layers on a feature map (Upadhyay et al. 2023, Less is More).

    Differences from the paper:
        - Outputs are logits, as the losses of classification tasks expect; the paper's code has a sigmoid here and
          another one in the loss.
        - The 2x2 max-pooling also reads the last row and column of a map of odd size.

    Examples:
        >>> ClassificationHead(16, 5, 8)(torch.rand(2, 16, 4, 6)).shape
        torch.Size([2, 5])
    """

    @validated
    def __init__(
        self,
        features: Annotated[Count, Doc("Channels of the feature map.")],
        outputs: Annotated[Count, Doc("Outputs per image.")],
        stride: Annotated[Count | None, Doc("Pixels per side of a position of the map; not None.")],
        *,
        channels: Annotated[Count, Doc("Channels of the convolution.")] = 64,
        hidden: Annotated[Count, Doc("Width between the linear layers.")] = 32,
        dropout: Annotated[Share, Doc("Probability of dropping the mean of a channel, in [0, 1).")] = 0.6,
        hidden_dropout: Annotated[
            Share, Doc("Probability of dropping a number between the linear layers, in [0, 1).")
        ] = 0.4,
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
