"""Networks of known kinds in plain torch, as people write them, tiny or in their true size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes:
        width: channels of the first stage, a multiple of 8.
        depth: blocks per stage.
        side: pixels of a side.
    """

    width: int = 8
    depth: int = 1
    side: int = 16


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Module:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


# ---- convolutional networks ----------------------------------------------------------------------------------------


class VGG(nn.Module):
    """Simonyan and Zisserman, 2015, with batch norms."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in range(3):
            for _ in range(size.depth + 1):
                outputs = size.width * 2**stage
                layers += [*conv(inputs, outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        hidden = 4 * size.width
        self.classifier = nn.Sequential(
            nn.Linear(4 * inputs, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(True)
        )
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.classifier(torch.flatten(self.pool(self.features(x)), 1)))


class Residual(nn.Module):
    """Basic block, or bottleneck, of He et al., 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, bottleneck: bool, dilation: int = 1) -> None:
        super().__init__()
        if bottleneck:
            inner = outputs // 4
            parts = [conv(inputs, inner, 1), conv(inner, inner, 3, stride, 1, dilation), conv(inner, outputs, 1)]
        else:
            parts = [conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)]
        self.convs = nn.ModuleList(parts)
        plain = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if plain else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number, part in enumerate(self.convs):
            out = part(out)
            if number < len(self.convs) - 1:
                out = F.relu(out)
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """Residual network; dilated (ResNet-D, output stride 8) it gives maps."""

    def __init__(self, size: Size, *, bottleneck: bool = False, dilated: bool = False) -> None:
        super().__init__()
        self.dilated, inputs = dilated, size.width
        self.stem = conv(3, inputs, 3, 2)
        self.blocks = nn.ModuleList()
        for stage in range(4):
            outputs = size.width * 2**stage * (4 if bottleneck else 1)
            stride, dilation = (1 if stage == 0 else 2), 1
            if dilated and stage > 1:
                stride, dilation = 1, 2 ** (stage - 1)
            for number in range(size.depth):
                step = stride if number == 0 else 1
                self.blocks.append(Residual(inputs, outputs, step, bottleneck=bottleneck, dilation=dilation))
                inputs = outputs
        self.outputs = inputs
        self.head = nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x if self.dilated else self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DeepLab(nn.Module):
    """DeepLabV3 (Chen et al., 2017) on a dilated residual network."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.backbone = ResNet(size, bottleneck=True, dilated=True)
        inputs, width = self.backbone.outputs, 2 * size.width
        self.branches = nn.ModuleList([conv(inputs, width, 1), *(conv(inputs, width, 3, dilation=d) for d in (2, 4))])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(inputs, width, 1), nn.ReLU())
        self.project = nn.Sequential(conv(4 * width, width, 1), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        found = [F.relu(branch(features)) for branch in self.branches]
        found.append(F.interpolate(self.image(features), size=features.shape[-2:], mode="bilinear"))
        out = self.head(self.project(torch.cat(found, 1)))
        return F.interpolate(out, size=x.shape[-2:], mode="bilinear", align_corners=False)


class SqueezeExcite(nn.Module):
    """Hu et al., 2018."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * self.activation(gate)


class Inverted(nn.Module):
    """Inverted residual of MobileNetV3 (Howard et al., 2019) and EfficientNet (Tan and Le, 2019)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: type[nn.Module], gate: nn.Module) -> None:
        super().__init__()
        inner = 4 * inputs
        self.layers = nn.Sequential(
            conv(inputs, inner, 1),
            activation(),
            conv(inner, inner, 3, stride, groups=inner),
            activation(),
            SqueezeExcite(inner, gate),
            conv(inner, outputs, 1),
        )
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Mobile(nn.Module):
    """MobileNetV3-like with hard-swish, or EfficientNet-like with SiLU."""

    def __init__(self, size: Size, *, efficient: bool) -> None:
        super().__init__()
        activation: type[nn.Module] = nn.SiLU if efficient else nn.Hardswish
        gate = nn.Sigmoid() if efficient else nn.Hardsigmoid()
        layers: list[nn.Module] = [conv(3, size.width, 3, 2), activation()]
        inputs = size.width
        for stage in range(2):
            for number in range(size.depth + 1):
                outputs = size.width * (stage + 1)
                layers.append(Inverted(inputs, outputs, 2 if number == 0 else 1, activation, gate))
                inputs = outputs
        self.features = nn.Sequential(*layers, conv(inputs, 4 * inputs, 1), activation())
        self.classifier = nn.Sequential(nn.Linear(4 * inputs, 4 * inputs), activation(), nn.Dropout(0.2))
        self.head = nn.Linear(4 * inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.classifier(self.features(x).mean([2, 3])))


class DenseNet(nn.Module):
    """Huang et al., 2017: every layer reads all earlier ones."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        growth, channels = size.width, 2 * size.width
        self.stem, self.norms, self.layers, self.transitions = nn.Conv2d(3, channels, 3, padding=1), *_lists(3)
        self.depth = size.depth + 2
        for stage in range(2):
            for _ in range(self.depth):
                self.norms.append(nn.BatchNorm2d(channels))
                self.layers.append(
                    nn.Sequential(nn.Conv2d(channels, 4 * growth, 1, bias=False), nn.BatchNorm2d(4 * growth), nn.ReLU())
                )
                self.layers.append(nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))
                channels += growth
            if stage == 0:
                self.transitions.append(
                    nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1))
                )
                channels //= 2
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, norm in enumerate(self.norms):
            if place == self.depth:
                x = F.avg_pool2d(self.transitions[0](x), 2)
            made = self.layers[2 * place + 1](self.layers[2 * place](F.relu(norm(x))))
            x = torch.cat([x, made], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


def _lists(count: int) -> list[nn.ModuleList]:
    return [nn.ModuleList() for _ in range(count)]


class UNet(nn.Module):
    """Ronneberger et al., 2015."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths = [size.width * 2**stage for stage in range(3)]

        def pair(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(*conv(inputs, outputs), nn.ReLU(), *conv(outputs, outputs), nn.ReLU())

        self.down = nn.ModuleList(pair(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(pair(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage, block in enumerate(self.down):
            x = block(x if stage == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat((up(x), skip), dim=1))
        return self.head(x)


class ConvNeXt(nn.Module):
    """Liu et al., 2022: depthwise convolutions, layer norms over channels, scales of blocks."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm, self.fc1, self.fc2 = (
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            )
            self.gamma = nn.Parameter(torch.rand(width))

        def forward(self, x: Tensor) -> Tensor:
            out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
            out = self.gamma * self.fc2(F.gelu(self.fc1(out)))
            return x + out.permute(0, 3, 1, 2)

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, size.width, 4, 4)
        blocks = [self.Block(size.width) for _ in range(size.depth + 1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((-2, -1))))


# ---- attention -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention with heads of queries that may share keys and values.

    Attributes:
        heads: heads of queries.
        groups: heads of queries that share keys and values.
    """

    def __init__(self, width: int, heads: int, *, shared: int = 1, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.shared, self.causal = heads, shared, causal
        own = width // shared
        self.q, self.k, self.v = (nn.Linear(width, n, bias=bias) for n in (width, own, own))
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, -1, width // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if self.shared > 1:
            k, v = (each.repeat_interleave(self.shared, dim=1) for each in (k, v))
        made = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(made.transpose(1, 2).reshape(batch, length, width))


class Encoder(nn.Module):
    """Layers of a ViT (norm first), of BERT (norm last), or of a decoder with RMS norms and SwiGLU."""

    def __init__(self, width: int, depth: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        decoder = kind == "decoder"
        norm: Any = nn.RMSNorm if decoder else nn.LayerNorm
        options = {"shared": 2, "causal": True, "bias": False} if decoder else {}
        self.attention = nn.ModuleList(Attention(width, 4, **options) for _ in range(depth))
        self.fc1 = nn.ModuleList(nn.Linear(width, 4 * width, bias=not decoder) for _ in range(depth))
        self.gate = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(depth if decoder else 0))
        self.fc2 = nn.ModuleList(nn.Linear(4 * width, width, bias=not decoder) for _ in range(depth))
        self.norms = nn.ModuleList(norm(width) for _ in range(2 * depth))

    def _neurons(self, place: int, x: Tensor) -> Tensor:
        made = self.fc1[place](x)
        made = F.silu(self.gate[place](x)) * made if self.kind == "decoder" else F.gelu(made)
        return self.fc2[place](made)

    def forward(self, x: Tensor) -> Tensor:
        for place, attention in enumerate(self.attention):
            first, second = self.norms[2 * place], self.norms[2 * place + 1]
            if self.kind == "bert":
                x = first(x + attention(x))
                x = second(x + self._neurons(place, x))
            else:
                x = x + attention(first(x))
                x = x + self._neurons(place, second(x))
        return x


class ViT(nn.Module):
    """Dosovitskiy et al., 2021."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size.width, 4, 4)
        self.first = nn.Parameter(torch.rand(1, 1, size.width))
        self.places = nn.Parameter(torch.rand(1, (size.side // 4) ** 2 + 1, size.width))
        self.encoder = Encoder(size.width, size.depth + 1, "vit")
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.encoder(x))[:, 0])


class Text(nn.Module):
    """BERT (Devlin et al., 2019), or a decoder with grouped queries."""

    def __init__(self, size: Size, kind: str) -> None:
        super().__init__()
        self.words = nn.Embedding(20, size.width)
        self.encoder = Encoder(size.width, size.depth + 1, kind)
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 20)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.words(words))))


# ---- recurrent networks --------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """GRU or LSTM between layers of single steps."""

    def __init__(self, size: Size, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        width = size.width
        self.words, self.fc1, self.fc2 = (
            nn.Embedding(20, width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.cells = kind(width, 2 * width, batch_first=True)
        self.after, self.head = nn.Linear(2 * width, 4 * width), nn.Linear(4 * width, 3)

    def forward(self, words: Tensor) -> Tensor:
        x, _ = self.cells(self.fc2(F.relu(self.fc1(self.words(words)))))
        return self.head(F.relu(self.after(x)))


# ---- zeros ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pruned(model: nn.Module, rate: float, kept: Sequence[str] = (), seed: int = 0) -> nn.Module:
    """The model with zeros in input channels, neurons and heads, each with probability `rate`.

    Args:
        kept: parts of names of layers that stay dense.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.named_modules():
        if any(part in name.split(".") for part in kept) or not isinstance(
            layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        ):
            continue
        axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
        channels = layer.weight.shape[axis]
        if channels <= 3 or getattr(layer, "groups", 1) > 1:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        units = owner.heads if isinstance(owner, Attention) and name.endswith(".out") else channels
        zero = (torch.rand(units, generator=generator) < rate).repeat_interleave(channels // units)
        layer.weight[(slice(None),) * axis + (zero,)] = 0
    if isinstance(model, Recurrent):  # hidden units that nothing reads
        zero = torch.rand(model.cells.hidden_size, generator=generator) < rate
        model.cells.weight_hh_l0[:, zero], model.after.weight[:, zero] = 0, 0
    return model


def seen(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in double precision and eval mode, with norms that have seen batches."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.double().eval().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.num_features, generator=generator))
    return model


def words(length: int = 6, samples: int = 2) -> Tensor:
    return torch.randint(0, 20, (samples, length), generator=torch.Generator().manual_seed(0))


def images(side: int, samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 3, side, side, dtype=torch.float64, generator=generator) * math.sqrt(2)
