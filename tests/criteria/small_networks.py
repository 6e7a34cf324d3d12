"""Encoders of every make, each as small as it can be, with an input of `SAMPLES` samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparsemtl import Classification, SharedBottom
from sparsemtl.backbones import resnet18
from sparsemtl.tasks import Task

SAMPLES = 4
WORDS = torch.tensor([[1, 1, 0, 3], [2, 0, 0, 0], [3, 3, 3, 3], [4, 1, 4, 1]])
"""Token indices below 5, with repeats inside a sample and between samples."""


class Runs(nn.Module):
    """A module that runs any function of its children and an input."""

    def __init__(self, function: Callable[[Any, Any], Tensor], **children: Any) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Any) -> Tensor:
        return self.function(self, x)


class DoubledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class Network(NamedTuple):
    """An encoder to be made, the shape of a sample or the input itself, and what its paths can and cannot do.

    Attributes:
        make: builds the encoder; features are flattened behind it.
        x: shape of a sample, or an input.
        hooks: hooks can give all of its per-sample gradients.
        vmap: `torch.func` can differentiate it.
    """

    make: Callable[[], nn.Module]
    x: Any
    hooks: bool = True
    vmap: bool = True


def tied() -> nn.Module:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def tanh(*layers: nn.Module) -> nn.Module:
    """The layers, a tanh between any two."""
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def time_first(position: Any) -> Callable[[], nn.Module]:
    """Layers that read (time, batch, features), of which one position or the sum over all goes on."""

    def run(module: Any, x: Tensor) -> Tensor:
        hidden = module.second(module.first(x.transpose(0, 1)).relu())
        return hidden.sum(0) if position == "sum" else hidden[position]

    return lambda: Runs(run, first=nn.Linear(3, 4), second=nn.Linear(4, 3))


NETWORKS: dict[str, Network] = {
    "linear": Network(lambda: tanh(nn.Linear(5, 6), nn.Linear(6, 4, bias=False)), (5,)),
    "linear on few positions": Network(lambda: tanh(nn.Linear(5, 3), nn.Linear(3, 2)), (3, 5)),
    "linear on many positions": Network(lambda: tanh(nn.Linear(5, 3), nn.Linear(3, 2)), (9, 5)),
    "linear on a map": Network(lambda: tanh(nn.Linear(5, 3)), (2, 2, 5)),
    "linear called by keyword": Network(lambda: Runs(lambda m, x: m.layer(input=x), layer=nn.Linear(5, 4)), (5,)),
    "conv1d": Network(
        lambda: tanh(nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), nn.Conv1d(6, 2, 2)), (4, 9)
    ),
    "conv2d": Network(lambda: tanh(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, (2, 3), stride=(1, 2))), (2, 4, 5)),
    "conv2d circular, depthwise": Network(
        lambda: tanh(
            nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 2), padding_mode="circular"),
            nn.Conv2d(4, 4, (2, 3), groups=4),
        ),
        (2, 5, 6),
    ),
    "conv2d reflect, replicate": Network(
        lambda: tanh(
            nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect", dilation=2),
            nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate"),
        ),
        (2, 5, 6),
    ),
    "conv2d same": Network(
        lambda: tanh(nn.Conv2d(2, 4, (2, 4), padding="same"), nn.Conv2d(4, 2, 2, padding="same", dilation=3)),
        (2, 5, 6),
    ),
    "conv3d": Network(
        lambda: tanh(nn.Conv3d(2, 4, (2, 1, 3), stride=2, padding=1), nn.Conv3d(4, 2, 2, groups=2)), (2, 3, 4, 5)
    ),
    "transposed conv1d": Network(
        lambda: tanh(nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)), (4, 5)
    ),
    "transposed conv2d": Network(
        lambda: tanh(
            nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), padding=1, output_padding=(1, 2), dilation=(1, 2), groups=2)
        ),
        (4, 3, 2),
    ),
    "transposed conv2d to a size": Network(
        lambda: Runs(lambda m, x: m.up(x, output_size=(6, 6)), up=nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)),
        (2, 3, 3),
    ),
    "transposed conv3d": Network(lambda: tanh(nn.ConvTranspose3d(2, 3, 2, stride=2)), (2, 2, 1, 2)),
    "embedding with padding": Network(lambda: tanh(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2)), WORDS),
    "embedding of one word": Network(lambda: tanh(nn.Embedding(5, 3), nn.Linear(3, 2)), WORDS[:, 0]),
    "embedding, sparse": Network(lambda: tanh(nn.Embedding(5, 3, sparse=True)), WORDS, vmap=False),
    "embedding by frequency": Network(lambda: tanh(nn.Embedding(5, 3, scale_grad_by_freq=True)), WORDS, hooks=False),
    "embedding with a norm limit": Network(
        lambda: tanh(nn.Embedding(5, 3, max_norm=0.5), nn.Linear(3, 2)), WORDS, hooks=False, vmap=False
    ),
    "embedding bag": Network(lambda: tanh(nn.EmbeddingBag(5, 3)), WORDS, hooks=False),
    "batch norm 1d": Network(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3)), (5,)
    ),
    "batch norm on a sequence": Network(lambda: tanh(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 7)),
    "batch norm 2d": Network(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2)),
        (3, 5, 5),
    ),
    "batch norm 3d": Network(lambda: tanh(nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4)), (1, 3, 3, 3)),
    "batch norm, synchronised": Network(lambda: tanh(nn.Conv1d(3, 4, 3), nn.SyncBatchNorm(4)), (3, 7)),
    "group norm": Network(lambda: tanh(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), (3, 5, 5)),
    "group norm of a vector": Network(lambda: tanh(nn.Linear(3, 6), nn.GroupNorm(2, 6)), (3,)),
    "layer norm": Network(lambda: tanh(nn.Linear(5, 6), nn.LayerNorm(6)), (5,)),
    "layer norm on positions": Network(lambda: tanh(nn.Linear(5, 6), nn.LayerNorm(6)), (3, 5)),
    "layer norm of maps": Network(
        lambda: tanh(nn.Conv2d(2, 3, 2), nn.LayerNorm([3, 4, 4]), nn.LayerNorm([4, 4])), (2, 5, 5)
    ),
    "instance norm": Network(
        lambda: tanh(nn.Conv2d(2, 3, 2, bias=False), nn.InstanceNorm2d(3, affine=True)), (2, 5, 5), hooks=False
    ),
    "a layer used twice": Network(
        lambda: Runs(lambda m, x: m.layer(m.layer(x).tanh()), layer=nn.Linear(5, 5)), (5,), hooks=False
    ),
    "tied weights": Network(tied, (5,), hooks=False),
    "residual": Network(
        lambda: Runs(lambda m, x: x + m.second(m.first(x).relu_()), first=nn.Linear(5, 4), second=nn.Linear(4, 5)), (5,)
    ),
    "changed in place": Network(
        lambda: Runs(
            lambda m, x: m.second(m.first(x).mul_(2).relu_()), first=nn.Conv2d(2, 2, 1), second=nn.Conv2d(2, 2, 2)
        ),
        (2, 3, 3),
    ),
    "weight used as a function": Network(
        lambda: Runs(lambda m, x: F.linear(x, m.layer.weight).tanh(), layer=nn.Linear(5, 4)), (5,), hooks=False
    ),
    "weight used as a function too": Network(
        lambda: Runs(lambda m, x: m.layer(x).tanh() + F.linear(x, m.layer.weight), layer=nn.Linear(5, 4)),
        (5,),
        hooks=False,
    ),
    "parameter of its own": Network(
        lambda: Runs(lambda m, x: m.layer(x) * m.scale, layer=nn.Linear(5, 4), scale=nn.Parameter(torch.rand(1, 4))),
        (5,),
    ),
    "subclass that computes something else": Network(lambda: tanh(DoubledLinear(5, 4)), (5,), hooks=False),
    "bilinear": Network(lambda: Runs(lambda m, x: m.layer(x, x), layer=nn.Bilinear(5, 5, 3)), (5,), hooks=False),
    "weight norm": Network(lambda: tanh(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))), (5,), hooks=False),
    "layer that is never used": Network(
        lambda: Runs(lambda m, x: m.layer(x), layer=nn.Linear(5, 4), idle=nn.Linear(5, 4)), (5,)
    ),
    "nested input": Network(
        lambda: Runs(lambda m, x: m.a(x["a"]) + m.b(x["b"][0]), a=nn.Linear(5, 3), b=nn.Embedding(5, 3)),
        {"a": torch.randn(SAMPLES, 5), "b": (WORDS[:, 0],)},
    ),
    "rnn": Network(
        lambda: Runs(lambda m, x: m.rnn(x)[0][:, -1], rnn=nn.RNN(3, 4, batch_first=True)),
        (5, 3),
        hooks=False,
        vmap=False,
    ),
    "lstm, time first": Network(
        lambda: Runs(lambda m, x: m.rnn(x.transpose(0, 1))[0][-1], rnn=nn.LSTM(3, 2, bidirectional=True)),
        (SAMPLES, 3),
        hooks=False,
        vmap=False,
    ),
    "transformer": Network(
        lambda: Runs(lambda m, x: m.block(x)[:, 0], block=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)),
        (3, 4),
    ),
    "transformer, time first": Network(
        lambda: Runs(lambda m, x: m.block(x.transpose(0, 1))[0], block=nn.TransformerEncoderLayer(4, 2, 8)),
        (SAMPLES, 4),
        hooks=False,
    ),
    "time first, as many times as samples, first": Network(time_first(0), (SAMPLES, 3), hooks=False),
    "time first, as many times as samples, second": Network(time_first(1), (SAMPLES, 3), hooks=False),
    "time first, as many times as samples, last": Network(time_first(-1), (SAMPLES, 3), hooks=False),
    "time first, as many times as samples, sum": Network(time_first("sum"), (SAMPLES, 3), hooks=False),
    "time first, a single time": Network(time_first("sum"), (1, 3), hooks=False),
    "positions looked up once per batch": Network(
        lambda: Runs(
            lambda m, x: m.mix(m.words(x) + m.places(torch.arange(x.shape[1]).unsqueeze(0))).relu().mean(1),
            words=nn.Embedding(5, 4),
            places=nn.Embedding(4, 4),
            mix=nn.Linear(4, 4),
        ),
        WORDS,
    ),
    "as many positions as samples": Network(
        lambda: Runs(
            lambda m, x: m.mix(m.words(x) + m.places(torch.arange(x.shape[1]))).relu().mean(1),
            words=nn.Embedding(5, 4),
            places=nn.Embedding(SAMPLES, 4),
            mix=nn.Linear(4, 4),
        ),
        WORDS,
    ),
    "learned query": Network(
        lambda: Runs(
            lambda m, x: (m.query(m.token).expand(len(x), -1, -1) @ m.key(x).transpose(1, 2)).softmax(-1) @ x,
            token=nn.Parameter(torch.rand(1, 2, 3)),
            query=nn.Linear(3, 3),
            key=nn.Linear(3, 3),
        ),
        (4, 3),
    ),
    "class token and map of positions": Network(
        lambda: Runs(
            lambda m, x: m.mix(torch.cat([m.token.expand(len(x), -1, -1), m.embed(x)], 1) + m.places).relu()[:, 0:2],
            token=nn.Parameter(torch.rand(1, 1, 4)),
            places=nn.Parameter(torch.rand(1, 4, 4)),
            embed=nn.Linear(3, 4),
            mix=nn.Linear(4, 4),
        ),
        (3, 3),
    ),
    "shared parameters of every rank": Network(
        lambda: Runs(
            lambda m, x: m.gain * m.layer(x + m.places * x) * m.scale.view_as(m.scale) + m.shift,
            places=nn.Parameter(torch.rand(3, 4)),
            layer=nn.Linear(4, 5),
            gain=nn.Parameter(torch.rand(5)),
            scale=nn.Parameter(torch.rand(())),
            shift=nn.Parameter(torch.zeros(3, 1)),
        ),
        (3, 4),
    ),
    "gain of the channels of maps": Network(
        lambda: Runs(
            lambda m, x: x + m.first * m.layer(x) + (m.second * x.movedim(1, -1)).movedim(-1, 1),
            layer=nn.Conv2d(2, 2, 1),
            first=nn.Parameter(torch.rand(2, 1, 1)),
            second=nn.Parameter(torch.rand(2)),
        ),
        (2, 3, 3),
    ),
    "shared parameter used twice": Network(
        lambda: Runs(
            lambda m, x: m.layer(x + m.place).tanh() * m.place,
            layer=nn.Linear(4, 4),
            place=nn.Parameter(torch.rand(1, 4)),
        ),
        (4,),
    ),
    "shared parameter that the model reshapes": Network(
        lambda: Runs(
            lambda m, x: m.layer(x) + m.places.reshape(6),
            layer=nn.Linear(4, 6),
            places=nn.Parameter(torch.rand(1, 2, 3)),
        ),
        (4,),
        hooks=False,
    ),
    "bias behind a mean over the batch": Network(
        lambda: Runs(
            lambda m, x: m.layer(x) + m.shift.mean(0), layer=nn.Linear(4, 3), shift=nn.Parameter(torch.rand(1, 3))
        ),
        (4,),
        hooks=False,
    ),
    "attention to itself with weights": Network(
        lambda: Runs(lambda m, x: m.mix(x, x, x)[0], mix=nn.MultiheadAttention(4, 2, batch_first=True)), (3, 4)
    ),
    "attention to others, time first": Network(
        lambda: Runs(
            lambda m, x: m.mix(*(y.transpose(0, 1) for y in (x[:, :2], x, x)), need_weights=False)[0].transpose(0, 1),
            mix=nn.MultiheadAttention(4, 2, bias=False),
        ),
        (3, 4),
    ),
    "attention with keys of its own": Network(
        lambda: Runs(
            lambda m, x: m.mix(x, x, x)[0], mix=nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)
        ),
        (3, 4),
        hooks=False,
    ),
    "attention used twice": Network(
        lambda: Runs(
            lambda m, x: m.mix(*[m.mix(x, x, x)[0]] * 3)[0], mix=nn.MultiheadAttention(4, 2, batch_first=True)
        ),
        (3, 4),
        hooks=False,
    ),
    "time first, fewer times than samples": Network(time_first("sum"), (SAMPLES - 1, 3), hooks=False),
    "resnet": Network(lambda: resnet18((3, 16, 16), stem="cifar", width=4), (3, 16, 16)),
}
if hasattr(nn, "RMSNorm"):  # torch 2.4
    NETWORKS["rms norm"] = Network(lambda: tanh(nn.Linear(5, 6), nn.RMSNorm(6)), (3, 5))


def build(network: Network, tasks: list[Task], dtype: torch.dtype = torch.float64) -> tuple[SharedBottom, Any]:
    """The network under heads for the tasks, its norms as if trained, and an input; all by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(network.make(), nn.Flatten())
        x = torch.rand(SAMPLES, *network.x) - 0.3 if isinstance(network.x, tuple) else network.x
        x = tree_map_only(Tensor, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, x)
        settle_norms(encoder, generator)
        width = encoder.eval().to(dtype)(x).shape[1]
        heads = {task.name: nn.Linear(width, task.outputs) for task in tasks}
        return SharedBottom(encoder, tasks, heads).to(dtype), x


def settle_norms(model: nn.Module, generator: torch.Generator) -> None:
    """Give norms the scales and statistics of a network in training."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        if (
            isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm))
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator)


def two_classifications() -> tuple[list[Task], dict[str, Tensor]]:
    """Two tasks and their labels for `SAMPLES` samples."""
    targets = {"kind": torch.tensor([0, 2, 1, 1]), "side": torch.tensor([1, 0, 0, 1])}
    return [Classification("kind", 3), Classification("side", 2)], targets
