from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemtl.errors import ParameterError
from sparsemtl.heads import DeepLabV3Head, FCNHead

BACKBONE = 23_508_032  # parameters of torchvision's resnet50 without fc
AUXILIARY = sum(p.numel() for p in FCNHead(1024, 21, 8).parameters())
NORM = {"weight": "256", "bias": "256", "running_mean": "256", "running_var": "256", "num_batches_tracked": "scalar"}


def small() -> DeepLabV3Head:
    torch.manual_seed(0)
    return DeepLabV3Head(6, 3, 1, channels=4, rates=[1, 2]).eval()


def normed(name: str, norm: str, shape: str) -> dict[str, str]:
    return {f"{name}.weight": shape, **{f"{norm}.{kind}": size for kind, size in NORM.items()}}


def test_names_and_shapes_are_torchvisions() -> None:
    expected = normed("classifier.0.convs.0.0", "classifier.0.convs.0.1", "256x2048x1x1")
    for branch in (1, 2, 3):
        expected |= normed(f"classifier.0.convs.{branch}.0", f"classifier.0.convs.{branch}.1", "256x2048x3x3")
    expected |= normed("classifier.0.convs.4.1", "classifier.0.convs.4.2", "256x2048x1x1")
    expected |= normed("classifier.0.project.0", "classifier.0.project.1", "256x1280x1x1")
    expected |= normed("classifier.1", "classifier.2", "256x256x3x3")
    expected |= {"classifier.4.weight": "21x256x1x1", "classifier.4.bias": "21"}
    own = DeepLabV3Head(2048, 21, 8).state_dict()
    assert [(n, "x".join(map(str, t.shape)) or "scalar") for n, t in own.items()] == list(expected.items())


def test_parameters_are_as_many_as_torchvision_publishes() -> None:
    deeplab = sum(p.numel() for p in DeepLabV3Head(2048, 21, 8).parameters())
    fcn = sum(p.numel() for p in FCNHead(2048, 21, 8).parameters())
    assert BACKBONE + AUXILIARY + deeplab == 42_004_074
    assert BACKBONE + AUXILIARY + fcn == 35_322_218


def test_the_defaults_are_those_of_less_is_more() -> None:
    pyramid = DeepLabV3Head(8, 1, 8).classifier[0]
    assert [branch[0].dilation[0] for branch in list(pyramid.convs)[1:4]] == [12, 24, 36]
    assert pyramid.project[3].p == 0.3


def test_outputs_equal_the_layers_written_out() -> None:
    head = small()
    x = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(1))
    pyramid = head.classifier[0]
    point, near, far, image = pyramid.convs
    mean = normed_out(x.mean((2, 3), keepdim=True), image[1])
    branches = [normed_out(x, branch[0]) for branch in (point, near, far)] + [mean.expand(-1, -1, 5, 7)]
    inner = normed_out(torch.cat(branches, 1), pyramid.project[0])
    inner = normed_out(inner, head.classifier[1])
    last = head.classifier[4]
    torch.testing.assert_close(head(x), F.conv2d(inner, last.weight, last.bias))


def normed_out(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A convolution that keeps the size, and a fresh norm in eval mode, which divides by sqrt(1 + eps)."""
    reach = layer.dilation[0] * (layer.kernel_size[0] // 2)
    convolved = F.conv2d(x, layer.weight, padding=reach, dilation=layer.dilation)
    return (convolved / (1 + 1e-5) ** 0.5).relu()


@pytest.mark.parametrize(("rates", "branches"), [([], 2), ([3], 3), ([1, 2, 3, 4], 6)])
def test_the_pyramid_has_a_branch_for_every_rate(rates: list[int], branches: int) -> None:
    head = DeepLabV3Head(6, 3, 2, channels=4, rates=rates)
    assert len(head.classifier[0].convs) == branches
    assert head(torch.rand(2, 6, 3, 3)).shape == (2, 3, 6, 6)


def test_one_image_is_answered_but_not_trained_on() -> None:
    head = small()
    x = torch.rand(1, 6, 3, 3)
    assert head(x).shape == (1, 3, 3, 3)
    with pytest.raises(ParameterError, match=r"cannot train on a batch of one image.*drop_last=True"):
        head.train()(x)
