"""Networks of known kinds shrink with their zeros, to a bound that each states, and give the same outputs.

A rule that stops working leaves more multiply-adds than the bound, which is a little above what is left today.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn.utils import prune
from zoo import Size

import sparsemtl as sm
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import CNN, resnet18, resnet50
from sparsemtl.compaction.verification.comparison import differences

Case = tuple[Callable[[Size], nn.Module], tuple[str, ...], float]
"""Network, names of layers that stay dense, largest fraction of the multiply-adds that is left at 50 % zeros."""

STREAM = ("q", "k", "v", "fc1", "gate", "head")
"""Layers that read a stream with a norm over its channels, which no zeros narrow."""
IMAGES: dict[str, Case] = {
    "VGG": (zoo.VGG, (), 0.29),
    "ResNet-18": (zoo.ResNet, (), 0.32),
    "ResNet-50": (lambda size: zoo.ResNet(size, bottleneck=True), (), 0.37),
    "dilated ResNet-50-D, DeepLab": (zoo.DeepLab, (), 0.35),
    "MobileNetV3": (lambda size: zoo.Mobile(size, efficient=False), (), 0.41),
    "EfficientNet": (lambda size: zoo.Mobile(size, efficient=True), (), 0.41),
    "DenseNet": (zoo.DenseNet, (), 0.42),
    "U-Net": (zoo.UNet, (), 0.22),
    "ConvNeXt": (zoo.ConvNeXt, ("fc1", "head"), 0.76),
    "ViT": (zoo.ViT, STREAM, 0.57),
}
WORDS: dict[str, Case] = {
    "BERT": (lambda size: zoo.Text(size, "bert"), STREAM, 0.52),
    "decoder": (lambda size: zoo.Text(size, "decoder"), STREAM, 0.59),
    "GRU": (lambda size: zoo.Recurrent(size, nn.GRU), (), 0.34),
    "LSTM": (lambda size: zoo.Recurrent(size, nn.LSTM), (), 0.35),
}
CASES = {**IMAGES, **WORDS}


def network(name: str, size: Size, rate: float) -> tuple[nn.Module, Tensor]:
    build, kept, _ = CASES[name]
    torch.manual_seed(0)
    model = zoo.pruned(zoo.seen(build(size)), rate, kept)
    return model, zoo.images(size.side) if name in IMAGES else zoo.words()


def left(model: nn.Module, x: Any, **options: Any) -> float:
    """Fraction of the multiply-adds that is left, after outputs were seen to be the same."""
    small = sm.compact(model, example_inputs=x, **options)
    task = options.get("task")
    with torch.no_grad():
        expected = model(x) if task is None else model(x, tasks=[task])[task]
        assert max(differences(expected, small(x)).values()) < 1e-10
    assert small.report.macs is not None
    return small.report.macs[1] / small.report.macs[0]


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_the_zoo_shrinks_and_gives_the_same_outputs(name: str) -> None:
    assert left(*network(name, Size(), 0.5)) <= CASES[name][2]


ARCHITECTURE_BOUNDS = {
    "shared-bottom": 0.28,
    "single-task": 0.34,
    "task-groups": 0.28,
    "squeeze-excitation": 0.41,
    "cross-stitch": 0.32,
    "nddr": 0.27,
    "mtal": 0.34,
    "mmoe": 0.40,
    "cgc": 0.26,
    "ple": 0.77,  # gates read images, and are dense
    "pbfs": 0.26,
}


@pytest.mark.parametrize("name", ARCHITECTURE_BOUNDS)
def test_a_task_of_every_architecture_shrinks(name: str) -> None:
    torch.manual_seed(0)
    options = {"pools": [["a", "b"]]} if name == "pbfs" else {}
    tasks = [sm.Classification("a", 3), sm.Regression("b")]
    model = ARCHITECTURES.build(name, CNN((3, 16, 16), widths=[8, 8]), tasks, **options)
    x = zoo.images(16)
    model(x.float())  # lazy layers infer their width
    assert left(zoo.pruned(zoo.seen(model), 0.5), x, task="a") <= ARCHITECTURE_BOUNDS[name]


def test_every_architecture_is_in_the_zoo() -> None:
    assert set(ARCHITECTURES) == {*ARCHITECTURE_BOUNDS, "auxiliary"}  # whose parts have tests of their own


def test_a_network_that_torch_pruned_shrinks() -> None:
    model, x = network("ResNet-18", Size(), 0.0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            prune.ln_structured(module, "weight", amount=0.5, n=2, dim=1)
    assert left(model, x) <= 0.42


@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV3"])
def test_a_network_that_torch_pruning_pruned_shrinks_further(name: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    model, x = network(name, Size(), 0.0)
    pruner = pruning.pruner.MagnitudePruner(
        model, x, pruning.importance.MagnitudeImportance(), pruning_ratio=0.25, ignored_layers=[model.head]
    )
    pruner.step()
    assert left(model, x) == pytest.approx(1, abs=0.02)  # of what it left, nothing is zero
    assert left(zoo.pruned(model, 0.5), x) <= CASES[name][2] + 0.1


# ---- true sizes ----------------------------------------------------------------------------------------------------

TRUE = {
    **dict.fromkeys(IMAGES, Size(64, 3, 64)),
    "dilated ResNet-50-D, DeepLab": Size(32, 2, 64),
    "MobileNetV3": Size(16, 3, 64),
    "EfficientNet": Size(24, 3, 64),
    "DenseNet": Size(32, 4, 32),
    "ConvNeXt": Size(96, 5, 64),
    "ViT": Size(192, 11, 64),
    **dict.fromkeys(WORDS, Size(256, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_network_of_true_size_shrinks_and_gives_the_same_outputs(name: str) -> None:
    assert left(*network(name, TRUE[name], 0.5)) <= CASES[name][2] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("build", "bound"), [(resnet18, 0.38), (resnet50, 0.40)])
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_a_residual_network_of_true_size_shrinks(build: Callable[..., nn.Module], bound: float, rate: float) -> None:
    torch.manual_seed(0)
    model = zoo.pruned(zoo.seen(build((3, 64, 64))), rate)
    assert left(model, zoo.images(64)) <= (bound if rate == 0.5 else 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_model_of_transformers_in_its_true_size_shrinks(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(vocab_size=100))
        names, x = ("attention.output.dense", "output.dense"), torch.randint(0, 100, (2, 16))
    else:
        model = transformers.ViTModel(transformers.ViTConfig(image_size=32))
        names, x = ("attention.o_proj", "mlp.fc2"), zoo.images(32)
    model = model.double().eval()
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name.endswith(names):
                layer.weight[:, : layer.in_features // 2] = 0  # six of twelve heads, or half of the neurons
    assert left(model, x) <= 0.53
