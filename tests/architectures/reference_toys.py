"""A small auxiliary network and images for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsemtl.architectures.damtl.reference import ReferenceNetwork
from sparsemtl.heads.linear import LinearHead

CLASSES = 4
LAYERS = ("1", "4")


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3), nn.ReLU())


def reference(*, known: bool = True) -> ReferenceNetwork:
    return ReferenceNetwork(encoder(), LAYERS, LinearHead(3, CLASSES) if known else None)


def images(count: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed))
