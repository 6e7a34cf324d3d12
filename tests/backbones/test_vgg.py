from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import each
from torch import Tensor, fx, nn

import sparsemtl as sm
from sparsemtl.backbones import ENCODERS, VGG, load_torchvision, vgg5, vgg11, vgg13, vgg16
from sparsemtl.backbones.stages import stages_of
from sparsemtl.errors import CheckpointError, ParameterError

CONVOLUTIONS = {
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "vgg13": (64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg16": (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
}
PLACES = {
    ("vgg11", False): (0, 3, 6, 8, 11, 13, 16, 18),
    ("vgg11", True): (0, 4, 8, 11, 15, 18, 22, 25),
    ("vgg13", False): (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    ("vgg13", True): (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    ("vgg16", False): (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ("vgg16", True): (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
}
"""Index of every convolution in the `features` of torchvision's networks; a norm has the next one."""
PARAMETERS = {"vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544}
"""Of torchvision's networks without norms, as it documents them."""
LAST = 4097 * 1000


def build(name: str, input_shape: tuple[int, ...] = (3, 32, 32), **options: Any) -> VGG:
    torch.manual_seed(0)
    model = ENCODERS.build(name, input_shape, **{"width": 2, **options})
    assert isinstance(model, VGG)
    return model


def published(name: str, norm: bool, width: int = 2, fc: int = 6) -> dict[str, Tensor]:
    """A state dict of torchvision's names, narrow: its classifier reads a grid of 7x7 and knows 10 classes."""
    channels, state = 3, {}
    for place, whole in zip(PLACES[name, norm], CONVOLUTIONS[name], strict=True):
        out = whole * width // 64
        state |= {
            f"features.{place}.weight": torch.randn(out, channels, 3, 3),
            f"features.{place}.bias": torch.ones(out),
        }
        if norm:
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"features.{place + 1}.{part}"] = torch.rand(out)
            state[f"features.{place + 1}.num_batches_tracked"] = torch.tensor(7)
        channels = out
    for place, (features, out) in zip((0, 3, 6), ((49 * channels, fc), (fc, fc), (fc, 10)), strict=True):
        state |= {f"classifier.{place}.weight": torch.randn(out, features), f"classifier.{place}.bias": torch.ones(out)}
    return state


@each(("name", "norm"), PLACES)
@each("fc", [None, [6], [6, 6]])
def test_torchvisions_weights_fill_the_network(name: str, norm: bool, fc: list[int] | None) -> None:
    state, model = published(name, norm), build(name, norm=norm, fc=fc, positions=7)
    load_torchvision(model, state)
    own = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in own.items())
    assert [key for key in state if key.startswith("features.")] == [key for key in own if key.startswith("features.")]
    layers = {key.rpartition(".")[0] for key in own if key.startswith("classifier.")}
    assert layers == {f"classifier.{3 * place}" for place in range(len(fc or ()))}


def test_torchvisions_classifier_does_not_fit_another_grid() -> None:
    with pytest.raises(CheckpointError, match=r"'classifier.0.weight' has shape \(6, 784\).*\(6, 16\).*positions=7"):
        load_torchvision(build("vgg11", norm=False, fc=[6, 6]), published("vgg11", False))


@pytest.mark.parametrize("fc", [None, [6, 6]])
def test_the_model_of_an_earlier_run_fills_the_network(fc: list[int] | None) -> None:
    state = {f"encoder.{key}": torch.rand_like(t) for key, t in build("vgg11", fc=fc, norm=False).state_dict().items()}
    model = build("vgg11", fc=fc, norm=False)
    load_torchvision(model, {**state, "heads.kind.layer.weight": torch.rand(3, 6)})
    assert all(torch.equal(tensor, state[f"encoder.{key}"]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_networks_are_as_large_as_torchvisions_without_the_last_layer(name: str) -> None:
    with torch.device("meta"):
        model = ENCODERS.build(name, norm=False, fc=[4096, 4096])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name] - LAST
    assert (model.out_features, model.classifier[0].in_features) == (4096, 25088)


def written_out(model: VGG, x: Tensor, depths: tuple[int, ...], poolings: int) -> Tensor:
    """The network in eval mode with functions instead of layers; fresh norms divide by sqrt(1 + eps)."""
    normed = any(isinstance(layer, nn.BatchNorm2d) for layer in model.features)
    convolutions = iter([layer for layer in model.features if isinstance(layer, nn.Conv2d)])
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            layer = next(convolutions)
            x = F.conv2d(x, layer.weight, layer.bias, padding=1)
            x = (x / math.sqrt(1 + 1e-5) if normed else x).relu()
        x = F.max_pool2d(x, 2) if stage < poolings else x
    x = F.adaptive_avg_pool2d(x, model.avgpool.output_size).flatten(1)
    for layer in model.classifier:
        x = F.linear(x, layer.weight, layer.bias).relu() if isinstance(layer, nn.Linear) else x
    return x


@each("norm", [False, True])
@each("fc", [None, [7, 5]])
@each(
    ("name", "depths"),
    [("vgg5", (1,) * 5), ("vgg11", (1, 1, 2, 2, 2)), ("vgg13", (2,) * 5), ("vgg16", (2, 2, 3, 3, 3))],
)
@each(("side", "poolings"), [(40, 5), (28, 4), (8, 3)])
def test_features_equal_the_layers_written_out(
    name: str, depths: tuple[int, ...], side: int, poolings: int, fc: list[int] | None, norm: bool
) -> None:
    model = build(name, (1, side, side), fc=fc, norm=norm).double().eval()
    x = torch.randn(2, 1, side, side, dtype=torch.float64)
    torch.testing.assert_close(model(x), written_out(model, x, depths, poolings))
    assert model(x).shape == (2, model.out_features)
    assert model.out_features == (16 if fc is None else 5)
    assert bool(model(x).any())


def test_the_papers_network_has_five_convolutions_and_two_fully_connected_layers() -> None:
    with torch.device("meta"):
        model = vgg5((1, 28, 28))
    kinds = [type(layer).__name__ for layer in model.features]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 4 + ["Conv2d", "ReLU", "Identity"]
    widths = [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 512]
    assert [type(layer).__name__ for layer in model.classifier] == ["Linear", "ReLU", "Dropout"] * 2
    assert [type(layer).__name__ for layer in vgg5((3, 32, 32), width=1).features][-1] == "MaxPool2d"


def test_dropout_is_behind_every_fully_connected_layer_and_only_in_training() -> None:
    model = build("vgg5", (1, 8, 8), fc=[400, 300], dropout=0.25)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model.eval()(x), model(x))
    assert [layer.p for layer in model.classifier if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
    kept = model(x) > 0
    dropped = (model.train()(x) == 0) & kept
    assert 0 < dropped.sum() < kept.sum()


@pytest.mark.parametrize("sides", [(32, 32), (45, 64), (100, 33)])
def test_it_runs_on_images_of_other_sizes_than_it_was_built_for(sides: tuple[int, int]) -> None:
    model = build("vgg11", (3, 32, 32), fc=[6]).eval()
    assert model(torch.rand(2, 3, *sides)).shape == (2, 6)


@pytest.mark.parametrize("input_shape", [(3, 64, 40), (1, 224, 230), (3, 28, 9)])
def test_the_grid_is_the_maps_own_up_to_seven_by_seven(input_shape: tuple[int, ...]) -> None:
    model = build("vgg5", input_shape, fc=[3], width=1).eval()
    sides = model.features(torch.rand(1, *input_shape)).shape[2:]
    assert tuple(model.avgpool.output_size) == tuple(min(side, 7) for side in sides)
    assert build("vgg5", input_shape, fc=[3], width=1, positions=2).avgpool.output_size == (2, 2)


def test_parameters_are_drawn_anew_as_they_were_at_first() -> None:
    model = build("vgg11", (3, 32, 32), fc=[6, 5])
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()(torch.rand(4, 3, 32, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(torch.equal(changed[name], tensor) for name, tensor in first.items())
    torch.manual_seed(1)
    model.reset_parameters()
    again = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(1)
    model.reset_parameters()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    assert not any(torch.equal(again[name], first[name]) for name in weights)
    assert all(torch.equal(again[name], first[name]) for name in first if name not in weights)


def test_weights_start_from_hes_distribution() -> None:
    model = vgg13((3, 32, 32), width=32, fc=[200])
    (layer,) = (
        one for one in model.features if isinstance(one, nn.Conv2d) and one.out_channels == 2 * one.in_channels == 256
    )
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    linear = model.classifier[0]
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fc": []}, r"'fc' parameter of VGG must be a non-empty sequence of ints .* Got \[\]"),
        ({"fc": [4096, 0]}, r"'fc' parameter of VGG must be .* Got \[4096, 0\]"),
        ({"dropout": 1.0}, r"'dropout' parameter of VGG must be a float in \[0, 1\)"),
        ({"width": 0}, r"'width' parameter of VGG must be an int in \[1, inf\)"),
    ],
)
def test_wrong_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        vgg16((3, 32, 32), **options)


def test_the_network_has_five_stages() -> None:
    with pytest.raises(ParameterError, match="VGG has five stages, got 4 depths"):
        VGG((3, 32, 32), depths=[1, 1, 2, 2])


@pytest.mark.parametrize("fc", [None, [6, 5]])
def test_per_sample_hooks_give_the_fisher_information_of_one_backward_a_sample(fc: list[int] | None) -> None:
    model = sm.SharedBottom(build("vgg11", (1, 16, 16), fc=fc), [sm.Classification("kind", 3)]).double().eval()
    loader = [(torch.rand(3, 1, 16, 16, dtype=torch.float64), {"kind": torch.tensor([0, 2, 1])})]
    fast, slow = (
        sm.fisher_information(model, loader, "kind", "true", path=path, mask_all=True) for path in ("hooks", "loop")
    )
    assert set(fast) == set(model.shared_parameters())
    for parameter in slow:
        torch.testing.assert_close(fast[parameter], slow[parameter], rtol=1e-7, atol=1e-18)


@pytest.mark.parametrize("fc", [None, [6], [6, 5]])
@pytest.mark.parametrize("side", [16, 40])
def test_it_is_the_composition_of_its_stages(fc: list[int] | None, side: int) -> None:
    model = build("vgg13", (3, side, side), fc=fc).eval()
    stages = stages_of(model)
    layers = [f"fc{number + 1}" for number in range(len(fc or ()))] or ["avgpool"]
    assert list(stages) == [*(f"stage{number}" for number in range(1, 6)), *layers]
    x = expected = torch.rand(2, 3, side, side)
    for stage in stages.values():
        x = stage(x)
    assert torch.equal(x, model(expected))
    owned = [id(p) for stage in stages.values() for p in stage.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_a_traced_network_is_the_same() -> None:
    model = build("vgg13", (3, 32, 32), fc=[6, 5]).eval()
    x = torch.rand(2, 3, 48, 33)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_grey_images_have_one_channel() -> None:
    assert vgg11((1, 28, 28), width=1)(torch.rand(2, 1, 28, 28)).shape == (2, 8)
