"""Feature maps of residual networks: a chosen stride, by dilation, computes what the full stride does, and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from sparsemtl.backbones import ENCODERS, ResNet, resnet18, resnet34, resnet50, resnet50_d
from sparsemtl.backbones.blocks import BasicBlock, Bottleneck
from sparsemtl.errors import ParameterError

STRIDES = {"imagenet": (4, 8, 16, 32), "deep": (4, 8, 16, 32), "cifar": (1, 2, 4, 8)}
KINDS = [pytest.param(stem, stride, id=f"{stem} {stride}") for stem, strides in STRIDES.items() for stride in strides]


def settled(model: ResNet) -> ResNet:
    """The model in eval mode and double precision, its norms as if trained."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval().double()


def pair(build: Callable[..., ResNet], stride: int, **options: Any) -> tuple[ResNet, ResNet]:
    """A network of this stride and the one of full stride, with the same weights."""
    torch.manual_seed(0)
    full = settled(build(output_stride=STRIDES[options["stem"]][-1], **options))
    dense = build(output_stride=stride, **options).double().eval()
    dense.load_state_dict(full.state_dict())
    return dense, full


def images(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("build", [resnet18, resnet50])
@pytest.mark.parametrize(("stem", "stride"), KINDS)
def test_a_dilated_map_holds_that_of_full_stride_at_every_kth_position(
    build: Callable[..., ResNet], stem: str, stride: int
) -> None:
    dense, full = pair(build, stride, stem=stem, width=2)
    factor = STRIDES[stem][-1] // stride
    x = images() if stem != "cifar" else images(16, 24)
    torch.testing.assert_close(dense(x)[:, :, ::factor, ::factor], full(x), rtol=1e-10, atol=1e-10)


def test_positions_between_are_not_copies_of_their_neighbours() -> None:
    dense, _ = pair(resnet18, 8, stem="imagenet", width=2)
    features = dense(images())
    even, odd = features[:, :, ::2], features[:, :, 1::2]
    live = (even > 0) | (odd > 0)
    assert live.double().mean() > 0.3
    assert (even != odd)[live].all()


@pytest.mark.parametrize("build", [resnet18, resnet34, resnet50])
@pytest.mark.parametrize("stride", [4, 8, 16, 32, None])
def test_dilation_changes_no_name_and_no_shape(build: Callable[..., ResNet], stride: int | None) -> None:
    def shapes(model: ResNet) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    assert shapes(build(width=1, output_stride=stride)) == shapes(build(width=1))


@pytest.mark.parametrize("stride", [8, None])
def test_weights_by_a_seed_do_not_depend_on_the_stride(stride: int | None) -> None:
    states = []
    for chosen in (32, stride):
        torch.manual_seed(3)
        states.append(resnet18(width=2, output_stride=chosen).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pooled_features_are_the_mean_of_the_map() -> None:
    _, full = pair(resnet50, 32, stem="imagenet", width=2)
    pooled = resnet50(width=2).double().eval()
    pooled.load_state_dict(full.state_dict())
    assert (pooled.stride, full.stride) == (None, 32)
    torch.testing.assert_close(pooled(images()), full(images()).mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("stem", "stride"), KINDS)
@pytest.mark.parametrize("sides", [(32, 32), (64, 96)])
def test_a_position_covers_as_many_pixels_as_the_network_tells(
    name: str, stem: str, stride: int, sides: tuple[int, int]
) -> None:
    model = ENCODERS.build(name, (1, *sides), stem=stem, width=1, output_stride=stride).eval()
    features = model(torch.rand(1, 1, *sides))
    assert features.shape == (1, model.out_features, sides[0] // model.stride, sides[1] // model.stride)


@pytest.mark.parametrize("sides", [(65, 64), (64, 60)])
def test_sides_that_are_no_multiples_of_the_stride_are_refused(sides: tuple[int, int]) -> None:
    model = resnet18(width=1, output_stride=8)
    height, width = sides
    with pytest.raises(ParameterError, match=f"multiples of 8, got {height}x{width} pixels.* {-(-height // 8) * 8}x64"):
        model(torch.rand(1, 3, height, width))


def test_pooled_features_are_had_of_images_of_any_sides() -> None:
    assert resnet18(width=1)(torch.rand(2, 3, 65, 37)).shape == (2, 8)


@pytest.mark.parametrize(("stem", "stride"), [("imagenet", 2), ("imagenet", 64), ("cifar", 16), ("deep", 12)])
def test_a_stride_that_no_stage_reaches_is_refused(stem: str, stride: int) -> None:
    possible = ", ".join(map(str, STRIDES[stem]))
    with pytest.raises(ParameterError, match=f"stem='{stem}' must be one of {possible}, or None .* Got {stride}"):
        resnet18(stem=stem, output_stride=stride)


@pytest.mark.parametrize("stride", [0, 8.0, True])
def test_a_stride_is_a_count(stride: Any) -> None:
    with pytest.raises(ParameterError, match=r"'output_stride' parameter of ResNet must be an int in \[1, inf\)"):
        resnet18(output_stride=stride)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_a_block_keeps_the_size_at_any_dilation(block: type[BasicBlock] | type[Bottleneck], dilation: int) -> None:
    made = block(3, 2, dilations=(dilation, 2 * dilation))
    assert made(torch.rand(2, 3, 5, 7)).shape == (2, 2 * block.expansion, 5, 7)


def test_a_traced_network_is_the_same_and_still_checks_its_images() -> None:
    model = resnet50_d(width=1).eval()
    traced = fx.symbolic_trace(model)
    x = torch.rand(1, 3, 32, 16)
    assert torch.equal(traced(x), model(x))
    with pytest.raises(ParameterError, match="multiples of 8"):
        traced(torch.rand(1, 3, 32, 17))
