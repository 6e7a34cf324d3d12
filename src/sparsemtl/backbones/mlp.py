"""Multilayer perceptron, for table rows and small images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

from torch import Tensor, nn
from typing_extensions import Doc

from sparsemtl.errors import ParameterError
from sparsemtl.registry.parameters import Counts, Share, validated


class MLP(nn.Module):
    """Fully connected layers on flattened samples: linear, (batch norm), ReLU, (dropout), for each width.

    Examples:
        >>> MLP((1, 8, 8), hidden=[32, 16])(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 16])
    """

    @validated
    def __init__(
        self,
        input_shape: Annotated[Sequence[int], Doc("Shape of one sample.")],
        *,
        hidden: Annotated[Counts, Doc("Width of every layer; the last is the width of the features.")] = (
            256,
            256,
        ),
        norm: Annotated[bool, Doc("Add batch normalisation after every linear layer, which then has no bias.")] = False,
        dropout: Annotated[Share, Doc("Probability of dropping a feature, in [0, 1).")] = 0.0,
    ) -> None:
        super().__init__()
        if not input_shape or min(input_shape) < 1:
            raise ParameterError(f"MLP reads samples of at least one number, got input_shape={tuple(input_shape)}.")
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(input_shape)
        for features in hidden:
            layers.append(nn.Linear(width, features, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm1d(features))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = features
        self.layers = nn.Sequential(*layers)
        self.out_features = width

    @property
    def sequence(self) -> nn.Sequential:
        """Layers of the network."""
        return self.layers

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (B, *input_shape) to features (B, out_features)."""
        features: Tensor = self.layers(x)
        return features
