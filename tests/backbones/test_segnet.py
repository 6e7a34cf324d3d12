from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from sparsemtl.backbones import ENCODERS, SegNet
from sparsemtl.backbones.segnet import unpooled
from sparsemtl.errors import ParameterError

VGG16_BN = {
    0: 64,
    3: 64,
    7: 128,
    10: 128,
    14: 256,
    17: 256,
    20: 256,
    24: 512,
    27: 512,
    30: 512,
    34: 512,
    37: 512,
    40: 512,
}
"""Index of every convolution in the `features` of torchvision's vgg16_bn -> its output channels; its norm follows."""


def small(width: int = 2) -> SegNet:
    torch.manual_seed(0)
    return SegNet((3, 33, 47), width=width)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_the_encoder_has_the_names_and_shapes_of_vgg16_bn() -> None:
    expected: dict[str, tuple[int, ...]] = {}
    channels = 3
    for index, width in VGG16_BN.items():
        expected[f"features.{index}.weight"] = (width, channels, 3, 3)
        expected[f"features.{index}.bias"] = (width,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"features.{index + 1}.{name}"] = (width,)
        expected[f"features.{index + 1}.num_batches_tracked"] = ()
        channels = width
    own = {f"features.{name}": tuple(tensor.shape) for name, tensor in SegNet().features.state_dict().items()}
    assert list(own.items()) == list(expected.items())


def test_the_encoder_is_as_large_as_the_convolutions_of_vgg16_bn() -> None:
    classifier = (512 * 49 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    assert sum(p.numel() for p in SegNet().features.parameters()) == 138_365_992 - classifier


def test_the_decoder_mirrors_the_encoder() -> None:
    model = SegNet()
    down, up = convolutions(model.features), convolutions(model.decoder)
    assert (len(down), len(up)) == (13, 13)
    assert [c.out_channels for c in up] == [512] * 3 + [256] * 3 + [128] * 3 + [64] * 4
    assert (model.out_features, model.stride) == (64, 1)


@pytest.mark.parametrize("sides", [(32, 32), (33, 47), (63, 64), (128, 45)])
def test_features_are_as_large_as_the_image_whatever_its_sides(sides: tuple[int, int]) -> None:
    model = ENCODERS.build("segnet", (1, *sides), width=2)
    assert model(torch.rand(2, 1, *sides)).shape == (2, model.out_features, *sides)


def test_features_equal_the_layers_written_out() -> None:
    model = small().double().eval()
    x = expected = torch.randn(2, 3, 33, 47, dtype=torch.float64)
    found: list[tuple[Tensor, torch.Size]] = []
    down, up = iter(convolutions(model.features)), iter(convolutions(model.decoder))
    for depth in (2, 2, 3, 3, 3):
        expected = written_out(expected, list(itertools.islice(down, depth)))
        size = expected.shape
        expected, indices = F.max_pool2d(expected, 2, return_indices=True)
        found.append((indices, size))
    for depth in (3, 3, 3, 2, 2):
        indices, size = found.pop()
        expected = F.max_unpool2d(expected, indices, 2, output_size=size[2:])
        expected = written_out(expected, list(itertools.islice(up, depth)))
    torch.testing.assert_close(model(x), expected)


def written_out(x: Tensor, layers: list[nn.Conv2d]) -> Tensor:
    """Convolutions, and fresh norms in eval mode, which divide by sqrt(1 + eps)."""
    for layer in layers:
        x = (F.conv2d(x, layer.weight, layer.bias, padding=1) / math.sqrt(1 + 1e-5)).relu()
    return x


sides = st.integers(2, 9)


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.integers(0, 99))
def test_maxima_return_to_where_they_were_found(height: int, width: int, seed: int) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1
    maxima, indices = F.max_pool2d(x, 2, return_indices=True)
    again = unpooled(maxima, indices, (height, width))
    assert torch.equal(again, torch.where(again > 0, x, 0.0))
    assert int((again > 0).sum()) == maxima.numel()
    assert torch.equal(again, F.max_unpool2d(maxima, indices, 2, output_size=(height, width)))
    repeated = F.max_pool2d(again, 2, return_indices=True)
    assert torch.equal(repeated[0], maxima)
    assert torch.equal(repeated[1], indices)


def test_gradients_come_from_where_the_maxima_are() -> None:
    maxima, indices = F.max_pool2d(torch.rand(1, 2, 5, 4, dtype=torch.float64), 2, return_indices=True)
    maxima.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: unpooled(m, indices, (5, 4)), maxima)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_unpooled_in_half_precision(dtype: torch.dtype) -> None:
    maxima, indices = F.max_pool2d(torch.rand(1, 2, 4, 4), 2, return_indices=True)
    found = unpooled(maxima.to(dtype), indices, (4, 4))
    assert found.dtype == dtype
    assert torch.equal(found, unpooled(maxima, indices, (4, 4)).to(dtype))


@pytest.mark.usefixtures("deterministic")
def test_it_trains_where_deterministic_algorithms_are_asked_for() -> None:
    gradients = []
    for _ in range(2):
        model = small()
        model(torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1))).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_convolutions_start_from_xaviers_distribution_and_biases_from_zero() -> None:
    model = SegNet(width=32)
    layer = convolutions(model.decoder)[0]  # 256 channels in and out
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * (256 + 256))), rel=0.01)
    assert all(bool((c.bias == 0).all()) for c in convolutions(model))


def test_an_image_that_pooling_would_use_up_is_refused() -> None:
    SegNet((3, 32, 32), width=1)
    with pytest.raises(ParameterError, match="halves an image 5 times and needs at least 32x32 pixels, got 40x31"):
        SegNet((3, 40, 31), width=1)


def test_a_traced_network_is_the_same_on_images_of_other_sides() -> None:
    model = small().eval()
    traced = fx.symbolic_trace(model)
    for sides in ((33, 47), (64, 32)):
        x = torch.rand(2, 3, *sides)
        assert torch.equal(traced(x), model(x))
