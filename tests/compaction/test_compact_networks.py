"""Networks with zeros in whole channels become smaller and give the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from compaction_toys import (
    PATTERNS,
    RandomNetwork,
    alive,
    assert_same_outputs,
    compacted,
    layers_of,
    widths,
    zeroed,
)
from loops import each
from torch import Tensor, nn

from sparsemtl.backbones import CNN, MLP, SegNet, resnet18, resnet34, resnet50, resnet50_d
from sparsemtl.backbones.blocks import Bottleneck
from sparsemtl.backbones.resnet import ResNet
from sparsemtl.compaction import compact, macs, parameter_count
from sparsemtl.compaction.rules import dense
from sparsemtl.compaction.rules.dense import WORTH
from sparsemtl.heads import ClassificationHead, ConvolutionHead, DeepLabV3Head, FCNHead
from sparsemtl.heads.linear import LinearHead

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP((3, 8, 8), hidden=[12, 10], dropout=0.2),
    "mlp with norms": lambda: MLP((3, 8, 8), hidden=[12, 10], norm=True),
    "cnn": lambda: CNN((3, 32, 32), widths=[6, 8, 10]),
    "cnn without norms": lambda: CNN((3, 32, 32), widths=[6, 8, 10], norm=False),
    "resnet18": lambda: resnet18((3, 32, 32), width=4),
    "resnet of maps": lambda: ResNet((3, 32, 32), depths=(1, 2, 1, 2), width=2, output_stride=16),
    "bottlenecks": lambda: ResNet((3, 32, 32), depths=(1, 2, 1, 1), block=Bottleneck, width=2),
    "bottlenecks-d": lambda: ResNet(
        (3, 32, 32), depths=(1, 1, 2, 1), block=Bottleneck, stem="deep", width=2, output_stride=8, dilate_entry=True
    ),
    "segnet": lambda: SegNet((3, 32, 32), width=4),
}
MAPS = ("resnet of maps", "bottlenecks-d", "segnet")
HEADS: dict[str, Callable[[int, int | None], nn.Module]] = {
    "linear": lambda width, stride: LinearHead(width, 3),
    "classification": lambda width, stride: ClassificationHead(width, 3, stride, channels=5, hidden=6),
    "convolution": lambda width, stride: ConvolutionHead(width, 3, stride, hidden=5),
    "fcn": lambda width, stride: FCNHead(width, 3, stride, hidden=5),
    "deeplabv3": lambda width, stride: DeepLabV3Head(width, 3, stride, channels=4, rates=(1, 2)),
}
NETWORKS = [(encoder, "linear") for encoder in ENCODERS] + [
    (encoder, head) for encoder in MAPS for head in HEADS if head != "linear"
]


def network(encoder: str, head: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    trunk = ENCODERS[encoder]()
    model = nn.Sequential(trunk, HEADS[head](trunk.out_features, getattr(trunk, "stride", None)))
    side = 8 if encoder.startswith("mlp") else 32
    return alive(model), torch.randn(2, 3, side, side, dtype=torch.float64)


ALL = [
    (encoder, head, pattern)
    for encoder, head in NETWORKS
    if head == "linear" or encoder == MAPS[0]
    for pattern in PATTERNS
]
"""Every encoder and every head with every pattern."""
ALL += [(MAPS[1 + number % 2], head, "both") for number, head in enumerate(list(HEADS)[1:])]
"""And every head on another encoder."""
OTHERS = [pattern for pattern in PATTERNS if pattern != "both"]
SHRUNK = [case for number, case in enumerate(ALL) if case[2] in ("both", OTHERS[number // len(PATTERNS) % 2])]
"""Of these, both patterns together, and one of the two in turn."""


@each(("encoder", "head", "pattern"), SHRUNK)
def test_outputs_stay_cost_shrinks_and_compacting_again_finds_nothing_more(
    encoder: str, head: str, pattern: str
) -> None:
    assert_shrinks(encoder, head, pattern)


@pytest.mark.slow
@each(("encoder", "head", "pattern"), [case for case in ALL if case not in SHRUNK])
def test_so_it_is_for_the_other_pattern(encoder: str, head: str, pattern: str) -> None:
    assert_shrinks(encoder, head, pattern)


def assert_shrinks(encoder: str, head: str, pattern: str) -> None:
    model, x = network(encoder, head)
    small = compacted(zeroed(model, pattern, 0.5), x)
    assert macs(small, x) < 0.7 * macs(model, x)
    assert parameter_count(small) < 0.7 * parameter_count(model)
    if head == "linear" and pattern == "both":
        again = compacted(small, x)
        assert widths(again) == widths(small)
        assert parameter_count(again) == parameter_count(small)


@pytest.mark.parametrize("make", [resnet34, resnet50, resnet50_d])
def test_networks_of_published_depth_shrink_as_well(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = alive(make((3, 32, 32), width=2))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert macs(compacted(zeroed(model, "both", 0.5), x), x) < 0.7 * macs(model, x)


@each(("encoder", "pattern"), [(encoder, PATTERNS[number % 3]) for number, encoder in enumerate(ENCODERS)])
def test_a_network_whose_weights_are_all_zero_gives_its_constants(encoder: str, pattern: str) -> None:
    model, x = network(encoder, "linear")
    small = compacted(zeroed(model, pattern, 1.0), x)
    assert max(inputs for inputs, _ in widths(small)) <= 3
    assert small(x).std(0).max() == 0


@each("encoder", ENCODERS)
def test_a_dense_network_keeps_its_weights(encoder: str) -> None:
    model, x = network(encoder, "linear")
    small = compacted(model, x)
    assert sorted(widths(small)) == sorted(widths(model))
    assert macs(small, x) == macs(model, x)


@pytest.mark.parametrize("encoder", ["cnn", "resnet18", "segnet"])
def test_in_single_precision_outputs_stay_but_for_rounding(encoder: str) -> None:
    model, x = network(encoder, "linear")
    model = zeroed(model, "both", 0.4).float()
    assert_same_outputs(compact(model), model, x.float(), tolerance=1e-5)


@each("encoder", ["mlp", "mlp with norms", "cnn", "cnn without norms"])
@each("pattern", PATTERNS)
def test_every_channel_left_matters_where_there_is_no_residual(encoder: str, pattern: str) -> None:
    model, x = network(encoder, "linear")
    small = compact(zeroed(leaky(model), pattern, 0.4))
    expected = small(x)
    for layer in layers_of(small):
        for channel in range(len(layer.bias)):
            with torch.no_grad():
                layer.bias[channel] += 1000
                changed = (small(x) - expected).abs().max()
                layer.bias[channel] -= 1000
            assert changed > 1e-3


def leaky(model: nn.Module) -> nn.Module:
    """The model with activations through which every change of a channel is seen."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.5))
    return model


@pytest.mark.parametrize("encoder", ["mlp", "cnn", "segnet"])
def test_the_outputs_tell_a_live_channel_that_is_dropped(encoder: str) -> None:
    model, x = network(encoder, "linear")
    small = compact(zeroed(leaky(model), "inputs", 0.2))
    assert_same_outputs(small, model, x)
    middle = next(layer for layer in layers_of(small) if layer.weight.shape[1] > 3)
    for channel in (middle.weight != 0).transpose(0, 1).flatten(1).any(1).nonzero():
        wrong = copy.deepcopy(small)
        with torch.no_grad():
            next(layer for layer in layers_of(wrong) if layer.weight.shape[1] > 3).weight[:, channel] = 0
        with pytest.raises(AssertionError):
            assert_same_outputs(wrong, model, x, tolerance=1e-6)


def test_a_residual_stream_narrows_where_no_later_layer_reads_a_channel() -> None:
    torch.manual_seed(0)
    model = alive(resnet18((3, 32, 32), width=8))
    with torch.no_grad():
        for block in model.layer1[1], model.layer2[0]:
            for weight in (block.conv1.weight, *([block.downsample[0].weight] if block.downsample else [])):
                weight[:, 4:] = 0
    small = compacted(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    first, second = small.get_submodule("layer1.0.conv2"), small.get_submodule("layer1.1.conv2")
    assert first.out_channels == second.out_channels == 4
    assert small.get_submodule("layer2.0.downsample.0").in_channels == 4


def test_rows_of_zeros_are_not_computed_for_a_stream_that_needs_their_channels() -> None:
    torch.manual_seed(0)
    model = alive(resnet18((3, 32, 32), width=16))
    with torch.no_grad():
        model.layer4[1].conv2.weight[10:] = 0  # their norms still shift these channels
    small = compacted(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert small.get_submodule("layer4.1.conv2").out_channels == 10


@pytest.mark.parametrize(
    ("seed", "worth"),
    [
        *((seed, WORTH if seed < 9 else 0) for seed in range(18)),  # nine have every pattern at every rate
        *(pytest.param(seed, 0 if seed < 9 else WORTH, marks=pytest.mark.slow) for seed in range(18)),
    ],
)
def test_a_random_network_keeps_its_outputs(seed: int, worth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "WORTH", worth)  # at 0 every chance to copy only some channels is taken
    model = alive(RandomNetwork(seed), seed)
    pattern, rate = PATTERNS[seed % 3], (0.3, 0.6, 0.9)[seed // 3 % 3]
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    small = compacted(zeroed(model, pattern, rate, seed), x)
    again = compacted(small, x)
    assert parameter_count(again) <= parameter_count(small) <= parameter_count(folded_size(model))


def folded_size(model: nn.Module) -> nn.Module:
    """The model with a bias in every layer, which folding its norms may add."""
    biased = copy.deepcopy(model)
    for layer in layers_of(biased):
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return biased


def test_images_of_other_sizes_can_be_read() -> None:
    model, _ = network("segnet", "fcn")
    small = compact(zeroed(model, "both", 0.3))
    assert_same_outputs(small, model, torch.randn(1, 3, 40, 64, dtype=torch.float64))


def test_the_network_can_be_trained_further() -> None:
    model, x = network("cnn", "linear")
    small = compact(zeroed(model, "inputs", 0.5))
    small(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
