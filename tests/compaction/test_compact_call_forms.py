"""One operation written in several forms: the compacted network is the same, whichever form is used."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compaction_toys import alive, assert_same_outputs, widths, zeroed
from loops import each
from torch import Tensor, nn

from sparsemtl.compaction import compact
from sparsemtl.errors import CompactionError

Form = Callable[[Tensor], Tensor] | nn.Module

IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A form of an operation between two convolutions, which read zeros and give zeros."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.between = form if isinstance(form, nn.Module) else None
        self.form = form
        self.second: nn.Module = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.form(self.first(x)))


def _written(method: str, *args: object, **options: object) -> Callable[[Tensor], Tensor]:
    """A method in place as a statement, whose result is not read."""

    def form(x: Tensor) -> Tensor:
        getattr(x, method)(*args, **options)
        return x

    return form


FORMS: dict[str, list[Form]] = {
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU(True),
        F.relu,
        F.relu_,
        torch.relu,
        torch.relu_,
        lambda x: F.relu(x, True),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu(input=x, inplace=True),
        lambda x: F.relu(input=x),
        lambda x: torch.relu(input=x),
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: Tensor.relu(x),
        _written("relu_"),
    ],
    "clamp": [
        lambda x: x.clamp(min=0.0),
        lambda x: x.clamp(0.0),
        lambda x: torch.clamp(x, 0.0),
        lambda x: torch.clamp(input=x, min=0.0),
        lambda x: torch.clamp(x, min=0.0, out=None),
        lambda x: torch.clip(x, 0.0, None),
        lambda x: x.clip(min=0.0),
        lambda x: x.clamp_(min=0.0),
        lambda x: torch.clamp_(x, 0.0),
        lambda x: x.clip_(0.0),
        lambda x: x.clamp_min(0.0),
        lambda x: torch.clamp_min(x, 0.0),
        lambda x: x.clamp_min_(0.0),
    ],
    "leaky ReLU": [
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(0.2, True),
        lambda x: F.leaky_relu(x, 0.2),
        lambda x: F.leaky_relu(x, negative_slope=0.2, inplace=True),
        lambda x: F.leaky_relu(x, 0.2, True),
        lambda x: F.leaky_relu_(x, 0.2),
    ],
    "sigmoid": [
        nn.Sigmoid(),
        torch.sigmoid,
        F.sigmoid,
        torch.special.expit,
        lambda x: torch.sigmoid(x, out=None),
        lambda x: x.sigmoid(),
        lambda x: x.sigmoid_(),
        lambda x: torch.sigmoid_(x),
    ],
    "sum of two": [
        lambda x: x + x.sigmoid(),
        lambda x: torch.add(x, x.sigmoid()),
        lambda x: torch.add(input=x, other=x.sigmoid(), out=None),
        lambda x: x.add(x.sigmoid()),
        lambda x: x.add(other=x.sigmoid(), alpha=1),
        lambda x: operator.add(x, x.sigmoid()),
        lambda x: x.add_(x.sigmoid()),
        lambda x: operator.iadd(x, x.sigmoid()),
        lambda x: x.__add__(x.sigmoid()),
    ],
    "difference": [
        lambda x: x - 0.5 * x.tanh(),
        lambda x: torch.sub(x, x.tanh(), alpha=0.5),
        lambda x: torch.subtract(x, 0.5 * x.tanh()),
        lambda x: torch.rsub(0.5 * x.tanh(), x),
        lambda x: x.subtract_(x.tanh(), alpha=0.5),
        lambda x: operator.isub(x, x.tanh().mul_(0.5)),
    ],
    "product": [
        lambda x: x * x.sigmoid(),
        lambda x: torch.mul(x, x.sigmoid()),
        lambda x: torch.multiply(input=x, other=x.sigmoid()),
        lambda x: x.mul(x.sigmoid()),
        lambda x: x.multiply_(x.sigmoid()),
        lambda x: operator.imul(x, x.sigmoid()),
    ],
    "power of a number": [
        lambda x: 2**x,
        lambda x: x.__rpow__(2),
        lambda x: torch.pow(2, x),
        lambda x: torch.pow(self=2, exponent=x, out=None),
    ],
    "power of a tensor": [
        lambda x: x.sigmoid() ** x.tanh(),
        lambda x: torch.pow(x.sigmoid(), x.tanh()),
        lambda x: x.sigmoid().pow(exponent=x.tanh()),
    ],
    "quotient": [
        lambda x: x / 2,
        lambda x: torch.div(x, 2),
        lambda x: torch.divide(x, 2, rounding_mode=None),
        lambda x: torch.true_divide(x, 2),
        lambda x: x.true_divide_(2),
        lambda x: operator.itruediv(x, 2),
        lambda x: x.div(other=2),
    ],
    "opposite": [lambda x: -x, torch.neg, torch.negative, lambda x: x.neg(), lambda x: x.negative_()],
    "from one": [
        lambda x: 1 - x,
        lambda x: torch.rsub(x, 1),
        lambda x: torch.sub(1, x),
        lambda x: x.__rsub__(1),
    ],
    "power": [
        lambda x: x**2,
        lambda x: x.__pow__(2),
        lambda x: operator.pow(x, 2),
        lambda x: operator.ipow(x, 2),
        lambda x: torch.pow(x, 2),
        lambda x: torch.pow(input=x, exponent=2),
        lambda x: x.pow(exponent=2),
        lambda x: x.pow_(2),
        lambda x: x.square(),
        torch.square,
        lambda x: x.float_power(2.0),
    ],
    "concatenation": [
        lambda x: torch.cat([x.relu(), x.tanh()], 1),
        lambda x: torch.cat((x.relu(), x.tanh()), dim=1),
        lambda x: torch.cat(tensors=(x.relu(), x.tanh()), dim=1),
        lambda x: torch.cat([x.relu(), x.tanh()], axis=1),
        lambda x: torch.cat([x.relu(), x.tanh()], dim=-3, out=None),
        lambda x: torch.concat([x.relu(), x.tanh()], dim=1),
        lambda x: torch.concatenate([x.relu(), x.tanh()], axis=1),
        lambda x: torch.hstack([x.relu(), x.tanh()]),
    ],
    "mean over positions": [
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.mean([2, 3], True),
        lambda x: torch.mean(x, (-2, -1), keepdim=True),
        lambda x: torch.mean(input=x, dim=(2, 3), keepdim=True, out=None),
        lambda x: x.mean(dim=(3, 2), keepdim=True),
        lambda x: x.mean(axis=(2, 3), keepdims=True),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((1, 1)),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(input=x, output_size=(1, 1)),
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        lambda x: F.avg_pool2d(x, kernel_size=x.size()[2:]),
        lambda x: x.mean(3, keepdim=True).mean(2, keepdim=True),
        lambda x: x.mean((2, 3))[:, :, None, None],
        lambda x: x.mean((2, 3)).unsqueeze(2).unsqueeze(-1),
        lambda x: x.mean((2, 3)).view(x.size(0), -1, 1, 1),
        lambda x: x.mean((2, 3)).reshape(len(x), x.shape[1], 1, 1),
        lambda x: x.mean((2, 3)).reshape((x.shape[0], x.shape[1], 1, 1)),
        lambda x: x.flatten(2).mean(2).unflatten(1, (6, 1, 1)),
        lambda x: x.flatten(2).mean(-1)[..., None, None],
        lambda x: x.view(x.size(0), x.size(1), -1).mean(2)[:, :, None, None],
    ],
    "maximum over positions": [
        nn.AdaptiveMaxPool2d(1),
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, output_size=(1, 1), return_indices=False),
        lambda x: x.amax((2, 3), keepdim=True),
        lambda x: torch.amax(x, dim=(2, 3), keepdim=True, out=None),
        lambda x: torch.amax(input=x, dim=(-1, -2), keepdim=True),
        lambda x: x.max(3, keepdim=True)[0].max(2, keepdim=True).values,
        lambda x: x.flatten(2).max(2)[0][:, :, None, None],
    ],
    "max-pooling": [
        nn.MaxPool2d(2),
        nn.MaxPool2d(kernel_size=(2, 2), stride=2),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(input=x, kernel_size=2),
        lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, False),
        lambda x: F.max_pool2d(x, 2, return_indices=False),
        lambda x: torch.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
    "average pooling": [
        nn.AvgPool2d(2),
        nn.AvgPool2d(2, stride=(2, 2)),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(input=x, kernel_size=(2, 2)),
        lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    ],
    "doubling": [
        nn.Upsample(scale_factor=2),
        nn.UpsamplingNearest2d(scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(input=x, scale_factor=(2, 2), mode="nearest"),
        lambda x: F.interpolate(x, None, 2),
        lambda x: F.interpolate(x, [16, 16]),
        lambda x: F.interpolate(x, size=(2 * x.shape[2], x.shape[3] * 2)),
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, dim=3),
    ],
    "padding": [
        nn.ZeroPad2d(1),
        nn.ConstantPad2d(1, 0.0),
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: F.pad(x, [1] * 4, "constant", 0),
        lambda x: F.pad(input=x, pad=(1, 1, 1, 1), mode="constant", value=0.0),
    ],
    "dropout": [
        nn.Dropout(),
        nn.Dropout2d(0.3, inplace=True),
        nn.Identity(),
        lambda x: F.dropout(x, 0.5, False),
        lambda x: F.dropout(x, training=False),
        lambda x: F.dropout(input=x, p=0.1, training=False, inplace=True),
        lambda x: F.dropout2d(x, 0.5, False, True),
        lambda x: torch.dropout(x, 0.5, False),
        lambda x: x,
        lambda x: x.contiguous(),
        lambda x: x.clone(),
        lambda x: x.to(x.dtype),
        lambda x: x.type_as(x),
    ],
    "transposition and back": [
        lambda x: x.transpose(2, 3),
        lambda x: torch.transpose(x, 2, 3),
        lambda x: torch.transpose(input=x, dim0=-1, dim1=-2),
        lambda x: x.swapaxes(2, 3),
        lambda x: torch.swapdims(x, 3, 2),
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x.permute((0, 1, 3, 2)),
        lambda x: torch.permute(input=x, dims=(0, 1, 3, 2)),
        lambda x: x.mT,
        lambda x: torch.movedim(x, 3, 2),
    ],
    "normalization": [
        lambda x: F.normalize(x),
        lambda x: F.normalize(x, 2, 1),
        lambda x: F.normalize(input=x, p=2.0, dim=1, eps=1e-12, out=None),
        lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-12),
        lambda x: x / torch.norm(x, dim=1, keepdim=True, out=None),
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
    ],
    "chunks side by side": [
        lambda x: torch.cat(x.chunk(2, 1), 1),
        lambda x: torch.cat(x.chunk(2, dim=1), dim=1),
        lambda x: torch.cat(torch.chunk(input=x, chunks=2, dim=1), 1),
        lambda x: torch.cat(x.split(3, 1), 1),
        lambda x: torch.cat(torch.split(x, [2, 4], dim=1), 1),
        lambda x: torch.cat(x.tensor_split(2, dim=1), 1),
        lambda x: torch.stack(x.unbind(1), 1),
        lambda x: torch.stack(list(x.unbind(dim=1)), dim=1),
    ],
}
"""Operation -> forms of the same; the first is the one that the others are compared with."""


CASES = [(name, place) for name, forms in FORMS.items() for place in range(len(forms))]


def _compacted(name: str, place: int) -> tuple[nn.Module, nn.Module]:
    model = Between(FORMS[name][place])
    if name == "concatenation":
        model.second = nn.Conv2d(12, 4, 3, padding=1)
    zeroed(alive(model), "inputs", 0.5, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model, compact(model, example_inputs=IMAGES)


@functools.cache
def _expected_widths(name: str) -> list[tuple[int, int]]:
    return widths(_compacted(name, 0)[1])


@each(("name", "place"), CASES)
def test_every_form_of_an_operation_gives_the_same_network_or_keeps_all_channels(name: str, place: int) -> None:
    model, small = _compacted(name, place)
    assert small.report.verification.verified
    assert_same_outputs(small, model, IMAGES)
    kept = small.first.out_channels == model.first.out_channels
    assert widths(small) == _expected_widths(name) or (kept and "not followed" in small.report.layer("first").why)


FOLLOWED = set(FORMS) - {"transposition and back", "normalization", "chunks side by side"}
"""Operations that channels are removed through."""


@each("name", sorted(FOLLOWED))
def test_the_first_form_lets_channels_be_removed(name: str) -> None:
    assert _expected_widths(name)[0][1] < 6


REFUSED: list[Form] = [
    lambda x: x.fill_(3),
    lambda x: x.copy_(x.relu()),
    lambda x: torch.add(x, 1, out=x),
    lambda x: operator.setitem(x, 0, 1.0) or x,
]


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_what_cannot_be_written_out_of_place_is_refused_in_our_words(place: int) -> None:
    with pytest.raises(CompactionError, match="writes in"):
        compact(Between(REFUSED[place]).eval(), example_inputs=torch.zeros(2, 3, 8, 8))


CASTS: list[Form] = [
    lambda x: x.double().to(x.dtype),
    lambda x: x.to(torch.float64).to(x),
    lambda x: x.double().relu().type_as(x) + x,
    lambda x: (x.double(), x.to(x.dtype))[1],
]


@pytest.mark.parametrize("place", range(len(CASTS)))
def test_a_cast_that_changes_nothing_in_double_precision_is_still_a_cast_in_single(place: int) -> None:
    model = zeroed(Between(CASTS[place]), "inputs", 0.5, seed=3).eval()
    x = IMAGES.float()
    assert_same_outputs(compact(model, example_inputs=x), model, x, 1e-5)


def test_a_mask_filled_in_place_and_flags_of_gradients_are_followed() -> None:
    def form(x: Tensor) -> Tensor:
        x.requires_grad_(False)
        x.masked_fill_(x > 0, 0.5)
        return x

    model = zeroed(alive(Between(form)), "inputs", 0.5, seed=3)
    assert_same_outputs(compact(model, example_inputs=IMAGES), model, IMAGES)
