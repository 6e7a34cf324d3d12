"""Small encoders of every kind whose outputs are units, with inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import sparsemtl as sm

TASKS = ("a", "b", "c")


class Residual(nn.Module):
    """A basic block with a convolution in its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.shortcut = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))
        return torch.relu(inner + self.shortcut(x)).mean((2, 3))


class Twice(nn.Module):
    """One layer that is called twice, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.unused = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.again(torch.relu(self.first(x))))))


class Block(nn.Module):
    """A transformer layer of torch, whose attention keeps all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def convolutions() -> nn.Module:
    layers = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh())


TOYS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "convolutions": (convolutions, (2, 6, 6), {"0": "1", "3": "3"}),
    "residual": (Residual, (2, 6, 6), {"first": "norm1", "second": "norm2", "shortcut.0": "shortcut.1"}),
    "hidden": (hidden, (4,), {"0": "1", "3": "3"}),
    "twice": (Twice, (4,), {"first": "first", "again": "again"}),
    "transformer": (Block, (3, 4), {"layer.linear1": "layer.linear1", "layer.linear2": "layer.linear2"}),
}
"""Name -> encoder, shape of an input, and layer with units -> module behind which they are masked.

In front of norms over several channels, they are masked too.
"""


def model_of(toy: str, seed: int = 0) -> sm.SharedBottom:
    torch.manual_seed(seed)
    model = sm.SharedBottom(TOYS[toy][0](), [sm.Regression(name) for name in TASKS])
    model(batch_of(toy)[0])  # heads learn their widths
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):  # so that a masked channel shows its shift
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, 0.5, 1.5)
    return model


def batch_of(toy: str, count: int = 6, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *TOYS[toy][1], generator=draw)
    return x, {name: torch.randn(count, generator=draw) for name in TASKS}
