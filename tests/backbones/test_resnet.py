from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsemtl.backbones import ENCODERS, ResNet, resnet18, resnet34
from sparsemtl.errors import ParameterError

TORCHVISION = Path(__file__).with_name("torchvision_resnet18.txt")  # `name shape` a line, from torchvision 0.29


def test_names_and_shapes_are_torchvisions_without_the_classifier() -> None:
    published = [line.split() for line in TORCHVISION.read_text().splitlines()]
    assert len(published) == 122
    own = [[n, "x".join(map(str, t.shape)) or "scalar"] for n, t in resnet18().state_dict().items()]
    assert own == [entry for entry in published if not entry[0].startswith("fc.")]


@pytest.mark.parametrize(("build", "published"), [(resnet18, 11_689_512), (resnet34, 21_797_672)])
def test_parameters_are_as_many_as_published_without_the_classifier(
    build: Callable[[], ResNet], published: int
) -> None:
    classifier = 512 * 1000 + 1000
    assert sum(p.numel() for p in build().parameters()) == published - classifier


@pytest.mark.parametrize(("stem", "sides"), [("imagenet", [16, 8, 4, 2]), ("cifar", [64, 32, 16, 8])])
def test_the_stem_sets_the_resolution_of_the_stages(stem: str, sides: list[int]) -> None:
    model = ENCODERS.build("resnet18", (1, 64, 64), stem=stem, width=4)
    seen: list[int] = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, args, output: seen.append(output.shape[-1]))
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 32)
    assert seen == sides


def test_features_are_eight_times_as_wide_as_the_first_stage() -> None:
    assert resnet34(width=8).out_features == 64
    assert resnet18().out_features == 512


def test_a_block_adds_its_shortcut_before_the_last_relu() -> None:
    block = resnet18(width=4).eval().layer1[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.relu())


def test_convolutions_start_from_hes_distribution_and_norms_from_the_identity() -> None:
    model = resnet18()
    weight = model.layer3[0].conv1.weight  # 128 channels in, 256 out
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((norm.weight == 1).all() and (norm.bias == 0).all()) for norm in norms)


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(ParameterError, match="'stem' parameter of ResNet must be one of 'imagenet', 'cifar'"):
        resnet18(stem="tiny")


def test_a_resnet_has_four_stages() -> None:
    with pytest.raises(ParameterError, match="four stages, got 3 depths"):
        ResNet((3, 32, 32), depths=(1, 1, 1))
