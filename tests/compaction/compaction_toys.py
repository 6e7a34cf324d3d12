"""Networks with zeros in whole channels, and what compaction promises of them."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sparsemtl.compaction import compact

PATTERNS = ("inputs", "outputs", "both")
"""Which groups of weights are zero: those that read a channel, those that make one, some of each."""


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision and eval mode, with norms that scale, shift and have seen batches."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in (module for module in model.double().modules() if isinstance(module, _BatchNorm)):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                if tensor is not None:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            if norm.running_var is not None:
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def zeroed(model: nn.Module, pattern: str, rate: float, seed: int = 0) -> nn.Module:
    """The model with whole channels of weights set to zero, each with probability `rate`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)):
            if pattern in ("inputs", "both"):
                layer.weight[:, torch.rand(layer.weight.shape[1], generator=generator) < rate] = 0
            if pattern in ("outputs", "both"):
                layer.weight[torch.rand(layer.weight.shape[0], generator=generator) < rate] = 0
    return model


def assert_same_outputs(small: nn.Module, model: nn.Module, x: Tensor, tolerance: float = 1e-12) -> None:
    """Outputs are equal to within a fraction of their spread."""
    with torch.no_grad():
        found, expected = small(x), model(x)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        pairs = [(found[name], expected[name]) for name in expected]
    else:
        pairs = [(found, expected)]
    for one, other in pairs:
        assert one.shape == other.shape
        spread = max(float(other.std()), float(other.abs().max()), 1e-300)
        assert float((one - other).abs().max()) <= tolerance * spread


def compacted(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    """The compacted network, after it was seen to give the same outputs and to leave the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = compact(model, **options)
    assert_same_outputs(small, model, x)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    return small


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Convolutions and linear layers, in order."""
    return [module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)]


def widths(model: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of every convolution and linear layer."""
    return [
        (m.in_features, m.out_features) if isinstance(m, nn.Linear) else (m.in_channels, m.out_channels)
        for m in layers_of(model)
    ]


class RandomNetwork(nn.Module):
    """Operations in a random order on random earlier results, all maps of one size."""

    def __init__(self, seed: int, steps: int = 12) -> None:
        super().__init__()
        self.choice = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.plan: list[tuple[str, int, int]] = []
        self.widths = [3]
        for _ in range(steps):
            self._add_step()
        self.head = nn.Linear(self.widths[-2], 3)

    def _add_step(self) -> None:
        first = self.choice.choice([len(self.widths) - 1, self.choice.randrange(len(self.widths))])
        width = self.widths[first]
        alike = [place for place, other in enumerate(self.widths) if other == width]
        kind = self.choice.choice([*LAYERS, *LAYERS, "add", "multiply", "concatenate", "gate", "reverse"])
        second = self.choice.randrange(len(self.widths)) if kind == "concatenate" else self.choice.choice(alike)
        layer = LAYERS[kind](width, self.choice) if kind in LAYERS else nn.Identity()
        self.layers.append(layer)
        self.plan.append((kind, first, second))
        changed = {"concatenate": width + self.widths[second]}
        self.widths.append(changed.get(kind, getattr(layer, "out_channels", width)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = [x]
        for layer, (kind, first, second) in zip(self.layers, self.plan, strict=True):
            one, other = found[first], found[second]
            if kind in LAYERS:
                found.append(layer(one))
            elif kind == "add":
                found.append(one + 0.5 * other)
            elif kind == "multiply":
                found.append(one * other)
            elif kind == "concatenate":
                found.append(torch.cat([one, other], dim=1))
            elif kind == "gate":
                found.append(one * torch.sigmoid(one.mean((2, 3), keepdim=True)))
            else:
                found.append(one.flip(1))
        return {"map": found[-1], "vector": self.head(found[-2].flatten(2).mean(2))}


def _convolution(width: int, choice: random.Random) -> nn.Module:
    kernel = choice.choice([1, 3])
    mode = choice.choice(["zeros", "zeros", "circular"])
    return nn.Conv2d(
        width, choice.randint(2, 6), kernel, padding=kernel // 2, bias=choice.random() < 0.7, padding_mode=mode
    )


def _grouped(width: int, choice: random.Random) -> nn.Module:
    return nn.Conv2d(width, width * choice.choice([1, 2]), 3, padding=1, groups=choice.choice([1, width]))


LAYERS: dict[str, Any] = {
    "convolution": _convolution,
    "grouped": _grouped,
    "transposed": lambda width, choice: nn.ConvTranspose2d(width, choice.randint(2, 5), 3, padding=1),
    "norm": lambda width, choice: nn.BatchNorm2d(width),
    "activation": lambda width, choice: choice.choice([nn.ReLU(), nn.Sigmoid(), nn.LeakyReLU(inplace=True)]),
    "pooling": lambda width, choice: choice.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)]),
    "group norm": lambda width, choice: nn.GroupNorm(1, width),
}
"""Kind of step -> layer for a width."""
