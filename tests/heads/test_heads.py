"""Every head through the same properties: sizes, gradients, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from loops import each
from torch import Tensor, nn

from sparsemtl.errors import ConfigError, ParameterError
from sparsemtl.heads import HEADS, ClassificationHead, ConvolutionHead, DenseHead, FCNHead
from sparsemtl.heads.linear import LinearHead
from sparsemtl.registry.parameters import parameters_of

DENSE = ["convolution", "fcn", "deeplabv3"]
every_dense_head = each("name", DENSE)
every_head = each("name", list(HEADS))


def small(name: str, features: int = 8, outputs: int = 3, stride: int | None = 4) -> nn.Module:
    torch.manual_seed(0)
    options = {"channels": 4} if name == "deeplabv3" else {}
    return HEADS.build(name, features, outputs, stride, **options)


def maps(height: int = 4, width: int = 6, features: int = 8) -> Tensor:
    return torch.randn(2, features, height, width, generator=torch.Generator().manual_seed(1))


def test_the_dense_heads_are_those_that_answer_for_every_pixel() -> None:
    assert [name for name in HEADS if isinstance(small(name), DenseHead)] == DENSE


@every_dense_head
@each("stride", [1, 2, 8, 32])
@each("sides", [(1, 1), (4, 6), (5, 3)])
def test_outputs_are_as_large_as_the_image(name: str, stride: int, sides: tuple[int, int]) -> None:
    outputs = small(name, stride=stride)(maps(*sides))
    assert outputs.shape == (2, 3, sides[0] * stride, sides[1] * stride)


@pytest.mark.parametrize("name", ["linear", "classification"])
@pytest.mark.parametrize("sides", [(1, 1), (4, 6), (5, 3)])
def test_the_other_heads_answer_once_an_image(name: str, sides: tuple[int, int]) -> None:
    assert small(name)(maps(*sides)).shape == (2, 3)


@every_dense_head
def test_outputs_lie_on_the_line_between_the_two_nearest_positions(name: str) -> None:
    head = small(name, stride=4).eval()
    coarse = head.classifier(maps())
    expected = between(between(coarse, 4).mT, 4).mT
    torch.testing.assert_close(head(maps()), expected)


def between(values: Tensor, stride: int) -> Tensor:
    """Linear interpolation on the last axis, pixel by pixel; pixel i lies at (i + 1/2) / stride - 1/2."""
    last = values.shape[-1] - 1
    pixels = []
    for i in range(values.shape[-1] * stride):
        place = min(max((i + 0.5) / stride - 0.5, 0), last)
        left = int(place)
        right = min(left + 1, last)
        pixels.append(values[..., left] * (1 - place + left) + values[..., right] * (place - left))
    return torch.stack(pixels, -1)


@every_dense_head
def test_at_stride_one_outputs_are_those_of_the_layers_bit_for_bit(name: str) -> None:
    head = small(name, stride=1).eval()
    assert torch.equal(head(maps()), head.classifier(maps()))


@every_head
def test_a_loss_reaches_every_parameter(name: str) -> None:
    head = small(name).eval()
    head(maps()).sigmoid().square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_head
def test_a_seed_fixes_the_weights_and_what_dropout_drops(name: str) -> None:
    first, second = small(name)(maps()), small(name)(maps())
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3", "classification"])
def test_dropout_acts_in_training_only(name: str) -> None:
    head = small(name)
    assert not torch.equal(head(maps()), head(maps()))
    head.eval()
    assert torch.equal(head(maps()), head(maps()))


@pytest.mark.parametrize(
    ("name", "options"),
    [("fcn", {}), ("deeplabv3", {"channels": 4}), ("classification", {"hidden_dropout": 0.0})],
)
def test_dropout_can_be_left_out(name: str, options: dict[str, float]) -> None:
    head = HEADS.build(name, 8, 3, 4, dropout=0.0, **options)
    assert torch.equal(head(maps()), head(maps()))


@pytest.mark.parametrize("name", [*DENSE, "classification"])
def test_features_without_positions_are_refused_with_the_encoders_that_have_them(name: str) -> None:
    with pytest.raises(ParameterError, match=r"the encoder has no `stride`.* 'segnet', 'resnet50-d' .* output_stride"):
        small(name, stride=None)


@pytest.mark.parametrize("stride", [None, 4])
def test_the_linear_head_is_the_one_that_tasks_have_by_default(stride: int | None) -> None:
    head = HEADS.build("linear", 8, 3, stride)
    assert type(head) is LinearHead
    assert (head.in_features, head.out_features) == (8, 3)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3", "classification"])
@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_dropout_must_be_a_share(name: str, dropout: float) -> None:
    with pytest.raises(ParameterError, match=r"'dropout' parameter of \w+Head must be a float in \[0, 1\)"):
        HEADS.build(name, 8, 3, 4, dropout=dropout)


def test_an_unknown_head_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown head 'deeplab'\. Did you mean 'deeplabv3'"):
        HEADS.build("deeplab", 8, 3, 4)


@every_head
def test_every_head_says_what_it_is_and_what_its_parameters_are(name: str) -> None:
    assert HEADS.summary(name).endswith((".", ")"))
    assert all(parameter.meaning and parameter.kind for parameter in parameters_of(HEADS[name]).values())


def test_a_classification_reads_the_strongest_of_every_four_positions() -> None:
    head = ClassificationHead(8, 3, 8, channels=5, hidden=6).eval()
    convolution, first, last = (head.layers[i] for i in (0, 6, 9))
    inner = F.conv2d(maps(), convolution.weight, convolution.bias, padding=1).relu()
    pooled = inner.unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax((3, 5)).mean((2, 3))
    hidden = (pooled @ first.weight.T + first.bias).relu()
    torch.testing.assert_close(head(maps()), hidden @ last.weight.T + last.bias)


def test_a_classification_has_the_widths_and_the_dropout_of_less_is_more() -> None:
    head = ClassificationHead(2048, 1, 8)
    assert [tuple(p.shape) for p in head.parameters() if p.ndim > 1] == [(64, 2048, 3, 3), (32, 64), (1, 32)]
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.6, 0.4]


def test_fcn_equals_the_layers_written_out() -> None:
    head = FCNHead(8, 3, 1).eval()
    convolution, norm, last = (head.classifier[i] for i in (0, 1, 4))
    inner = F.conv2d(maps(), convolution.weight, padding=1) / (1 + norm.eps) ** 0.5
    assert inner.shape[1] == 2
    torch.testing.assert_close(head(maps()), F.conv2d(inner.relu(), last.weight, last.bias))


def test_the_head_of_segnet_has_nothing_between_its_convolutions() -> None:
    head = ConvolutionHead(8, 3, 1)
    first, last = head.classifier
    assert (first.weight.shape, last.weight.shape) == ((8, 8, 3, 3), (3, 8, 1, 1))
    x = maps()
    torch.testing.assert_close(head(-x) - head(torch.zeros_like(x)), head(torch.zeros_like(x)) - head(x))
    assert not first.bias.any()
    assert not last.bias.any()
