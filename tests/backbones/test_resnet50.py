from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsemtl.backbones import ENCODERS, resnet50, resnet50_d
from sparsemtl.errors import ParameterError

TORCHVISION = Path(__file__).with_name("torchvision_resnet50.txt")  # `name shape` a line, of torchvision's resnet50


def entries(model: nn.Module) -> list[list[str]]:
    return [[n, "x".join(map(str, t.shape)) or "scalar"] for n, t in model.state_dict().items()]


def published() -> list[list[str]]:
    listed = [line.split() for line in TORCHVISION.read_text().splitlines()]
    return [entry for entry in listed if not entry[0].startswith("fc.")]


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_names_and_shapes_are_torchvisions_without_the_classifier() -> None:
    assert len(published()) == 318
    assert entries(resnet50()) == published()


def test_parameters_are_as_many_as_published_without_the_classifier() -> None:
    assert size(resnet50()) == 25_557_032 - (2048 * 1000 + 1000) == 23_508_032
    assert resnet50().out_features == 2048


def test_input_channels_of_all_convolutions_are_the_groups_that_are_counted_in_less_is_more() -> None:
    assert sum(convolution.in_channels for convolution in convolutions(resnet50())) == 22_531


def test_a_bottleneck_adds_its_shortcut_before_the_last_relu() -> None:
    block = resnet50(width=4).eval().layer1[1]
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(block(x), x.relu())


def test_the_3x3_convolution_of_a_bottleneck_halves_the_resolution() -> None:
    first = resnet50(width=2).layer3[0]
    assert [c.stride[0] for c in (first.conv1, first.conv2, first.conv3, first.downsample[0])] == [1, 2, 1, 2]
    assert first.conv2.kernel_size == (3, 3)


def test_the_deep_stem_leaves_all_else_as_torchvision_names_it() -> None:
    own, stem = dict(entries(resnet50_d())), dict(published())
    assert {name: own[name] for name in own if own[name] != stem.get(name)} == {
        "conv1.0.weight": "64x3x3x3",
        **norm("conv1.1", 64),
        "conv1.3.weight": "64x64x3x3",
        **norm("conv1.4", 64),
        "conv1.6.weight": "128x64x3x3",
        **{name: kind for name, kind in norm("bn1", 128).items() if kind != "scalar"},
        "layer1.0.conv1.weight": "64x128x1x1",
        "layer1.0.downsample.0.weight": "256x128x1x1",
    }
    assert set(stem) - set(own) == {"conv1.weight"}


def norm(name: str, width: int) -> dict[str, str]:
    tensors = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{kind}": str(width) for kind in tensors}, f"{name}.num_batches_tracked": "scalar"}


def test_the_deep_stem_halves_the_image_once_and_pools_it_once() -> None:
    model = resnet50_d(width=2)
    assert [c.stride[0] for c in convolutions(model.conv1)] == [2, 1, 1]
    assert model.maxpool(model.conv1(torch.rand(1, 3, 32, 48))).shape == (1, 4, 8, 12)


def test_the_deep_stem_equals_the_layers_written_out() -> None:
    model = resnet50_d(width=2)
    x = expected = torch.randn(2, 3, 32, 48)
    for convolution in convolutions(model.conv1):
        expected = F.conv2d(expected, convolution.weight, stride=convolution.stride, padding=1)
        expected = F.batch_norm(expected, None, None, training=True).relu()
    torch.testing.assert_close(model.bn1(model.conv1(x)).relu(), expected)


def test_the_third_and_fourth_stage_of_resnet50_d_are_dilated_from_their_first_block_on() -> None:
    model = resnet50_d(width=2)
    dilations = [[block.conv2.dilation[0] for block in stage] for stage in (model.layer2, model.layer3, model.layer4)]
    assert dilations == [[1] * 4, [2] * 6, [4] * 3]
    assert all(c.stride == (1, 1) for stage in (model.layer3, model.layer4) for c in convolutions(stage))


@pytest.mark.parametrize("sides", [(256, 256), (64, 48), (8, 8)])
def test_resnet50_d_gives_a_map_of_stride_8(sides: tuple[int, int]) -> None:
    model = ENCODERS.build("resnet50-d", (1, *sides), width=1)
    assert (model.out_features, model.stride) == (32, 8)
    assert model(torch.rand(2, 1, *sides)).shape == (2, 32, sides[0] // 8, sides[1] // 8)


def test_a_map_needs_a_stride_that_its_stem_can_reach() -> None:
    with pytest.raises(ParameterError, match=r"stem='deep' must be one of 4, 8, 16, 32, or None .* Got 2 instead"):
        resnet50_d(width=1, output_stride=2)
