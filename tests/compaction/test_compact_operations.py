"""Modules of users: what is understood becomes smaller, what is not stays right."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from compaction_toys import PATTERNS, alive, assert_same_outputs, compacted, layers_of, widths, zeroed
from loops import each
from torch import Tensor, nn

from sparsemtl.compaction import compact, parameter_count
from sparsemtl.errors import ParameterError


class Calls(nn.Module):
    """Two 3x3 convolutions with something in between, then a mean over positions."""

    def __init__(self, between: object, width: int = 6, read: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.between = between if isinstance(between, nn.Module) else None
        self.function = None if isinstance(between, nn.Module) else between
        self.second = nn.Conv2d(read or width, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.between(x) if self.between is not None else self.function(x)
        return self.second(x).mean((2, 3))


IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

CHANNELWISE = {
    "depthwise convolution": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "norm of samples": nn.InstanceNorm2d(6, affine=True),
    "batch norm": nn.BatchNorm2d(6),
    "norm of batches": nn.BatchNorm2d(6, track_running_stats=False),
    "norm without scale": nn.BatchNorm2d(6, affine=False),
    "max-pooling": nn.MaxPool2d(2, ceil_mode=True),
    "padded average pooling": nn.AvgPool2d(3, padding=1),
    "enlargement": nn.Upsample(scale_factor=2),
    "zero padding": nn.ZeroPad2d(1),
    "reflection": nn.ReflectionPad2d(1),
    "GELU": nn.GELU(),
    "own slopes": nn.PReLU(6),
    "one slope": nn.PReLU(),
    "function in place": lambda x: F.relu_(x),
    "method in place": lambda x: x.mul_(2).sigmoid_(),
    "operator in place": lambda x: twice(x),
    "scalars": lambda x: 1 - 2 * x,
    "resizing": lambda x: F.interpolate(x, size=(5, 6), mode="bilinear"),
    "to the size of another": lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]),
    "padding": lambda x: F.pad(x, (1, 0, 1, 2)),
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "gate of means": lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
    "expanded mean": lambda x: F.adaptive_avg_pool2d(x, 1).expand(-1, -1, x.shape[2], x.size(3)) + x,
    "as wide as it has channels": lambda x: x.mean(3, keepdim=True).expand(-1, -1, -1, x.size(1)),
    "sum over positions": lambda x: x.sum((2, 3), keepdim=True).tanh(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "scaled by positions": lambda x: x * x.size(-1),
    "sum with a row": lambda x: x + torch.ones(1, 1, 1, x.shape[3], dtype=x.dtype),
    "swapped": lambda x: x.transpose(1, 2).transpose(1, 2),
    "permuted": lambda x: x.permute(0, 2, 3, 1).softmax(1).permute(0, 3, 1, 2),
    "rows side by side": lambda x: torch.cat([x[:, :, :3], x[:, :, 5:]], 2),
    "shuffled": nn.ChannelShuffle(3),
    "reversed": lambda x: x.flip(1),
    "halves of rows": lambda x: torch.add(*x.chunk(2, 2)),
    "cast": lambda x: x.to(x.dtype).type(torch.float64).double(),
}


ENDING_CONSTANTS = (
    "cast",
    "norm of batches",
    "norm of samples",
    "padded average pooling",
    "zero padding",
    "padding",
    "permuted",
    "rows side by side",
    "scaled by positions",
    "sum over positions",
    "sum with a row",
)
"""Behind these a channel without weights is not, or not known to be, the same everywhere."""


def twice(x: Tensor) -> Tensor:
    x += x
    return x


@each("pattern", PATTERNS)
@each("between", CHANNELWISE)
def test_channels_are_followed_through(between: str, pattern: str) -> None:
    model = alive(Calls(CHANNELWISE[between]))
    small = compacted(zeroed(model, pattern, 0.5, seed=3), IMAGES)
    if pattern != "outputs" or between not in ENDING_CONSTANTS:
        assert small.first.out_channels < 6
        assert small.second.in_channels < 6


OPAQUE = {
    "softmax": nn.Softmax(dim=1),
    "transposed convolution of groups": nn.ConvTranspose2d(6, 6, 1, groups=2),
    "group norm over all": nn.GroupNorm(1, 6),
    "turned": lambda x: torch.rot90(x, 2, (2, 3)),
    "mean over channels": lambda x: x - x.mean(1, keepdim=True),
    "sum with a map": lambda x: x + x[:, :1],
    "number of channels": lambda x: x * x.shape[1],
    "as high as it has channels": lambda x: F.interpolate(x, size=(x.shape[1], 4)),
    "as high as it has channels, asked": lambda x: F.interpolate(x, size=(x.size(1), x.size(2))),
    "as large as a part of its shape": lambda x: F.interpolate(x, size=x.shape[1:3]),
    "some of the shape": lambda x: x * x.shape[:2][1],
    "size of another's channels": lambda x: x + x.new_ones(x.shape),
}


@each("pattern", PATTERNS)
@each("between", OPAQUE)
def test_what_is_not_understood_keeps_all_that_it_reads(between: str, pattern: str) -> None:
    model = alive(Calls(OPAQUE[between]))
    small = compacted(zeroed(model, pattern, 0.5, seed=3), IMAGES)
    assert small.first.out_channels == 6


def test_concatenation_drops_the_parts_that_nobody_reads() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(3))
            self.last = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([branch(x).relu() for branch in self.branches], dim=1))

    model = alive(Branches())
    with torch.no_grad():
        model.last.weight[:, 3:8] = 0
    small = compacted(model, IMAGES)
    assert small.branches.get_submodule("0").out_channels == 3
    assert not hasattr(small.branches, "1")
    assert small.branches.get_submodule("2").out_channels == 4


@pytest.mark.parametrize("flat", ["flatten", "module", "view", "reshape"])
def test_positions_of_a_dropped_channel_leave_the_linear_layer_behind_it(flat: str) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3)
            self.norm = nn.BatchNorm1d(6 * 36)
            self.module = nn.Flatten()
            self.second = nn.Linear(6 * 36, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            ways = {
                "flatten": lambda: torch.flatten(x, 1),
                "module": lambda: self.module(x),
                "view": lambda: x.view(x.size(0), -1),
                "reshape": lambda: x.reshape((x.shape[0], -1)),
            }
            return self.second(self.norm(ways[flat]()).relu())

    model = alive(Flat())
    with torch.no_grad():
        model.second.weight.view(5, 6, 36)[:, [1, 4]] = 0
        model.second.weight[:, 0] = 0  # one position of a channel is no channel
    small = compacted(model, IMAGES)
    assert small.first.out_channels == 4
    assert small.second.in_features == 4 * 36


def test_flattened_maps_are_added_though_one_is_read_elsewhere_too() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.sum, self.own = nn.Linear(256, 2), nn.Linear(256, 2)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.one(x).flatten(1), self.two(x).flatten(1)
            return self.sum(one + two) + self.own(one)

    model = alive(Sum())
    with torch.no_grad():
        model.sum.weight[:, :128] = 0
        model.own.weight[:, 192:] = 0
    small = compact(model)
    assert_same_outputs(small, model, IMAGES)
    assert (small.one.out_channels, small.own.in_features) == (4, 256)  # either reads what the other does not


@pytest.mark.parametrize("shape", [(-1, 64), (-1, 4), ("batch", 256), ("half", -1)], ids=str)
def test_a_view_of_another_shape_is_not_taken_for_flattening(shape: tuple[int | str, int]) -> None:
    class Regrouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.second = nn.Linear(64 if shape[1] == -1 else shape[1], 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            lengths = {"batch": x.shape[0], "half": x.shape[0] * 4, -1: -1}
            return self.second(x.view(lengths[shape[0]], shape[1]))

    model = alive(Regrouped())
    with torch.no_grad():
        model.second.weight[:, : model.second.in_features // 2] = 0
    small = compact(model)
    assert_same_outputs(small, model, IMAGES)
    assert small.first.out_channels == 4


def test_linear_layers_work_on_the_last_of_any_axes() -> None:
    model = alive(nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    with torch.no_grad():
        model[2].weight[:, 2:] = 0
    small = compacted(model, torch.randn(3, 7, 5, dtype=torch.float64))
    compacted(model, torch.randn(3, 5, dtype=torch.float64))
    assert sorted(widths(small)) == [(2, 4), (4, 2), (5, 2)]


class Rows(nn.Module):
    """A linear layer on the positions of a convolution's channels, and something behind it."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 6, 1)
        self.linear = nn.Linear(4, 6)
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.linear(self.convolution(x)))


@each("pattern", PATTERNS)
@each(
    "behind",
    [
        nn.BatchNorm1d(6),
        nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
        nn.Sequential(nn.Conv1d(6, 2, 1), nn.Flatten()),
        nn.AdaptiveAvgPool1d(2),
    ],
)
def test_features_on_the_last_axis_are_not_taken_for_channels(behind: nn.Module, pattern: str) -> None:
    torch.manual_seed(0)
    model = zeroed(alive(Rows(copy.deepcopy(behind))), pattern, 0.5, seed=3)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    small = compact(model)
    assert_same_outputs(small, model, x)
    assert parameter_count(small) <= parameter_count(model)


def test_a_channel_that_is_carried_only_for_its_size_is_zero() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)))
    with torch.no_grad():
        model[2].weight.zero_()
    small = compacted(model, IMAGES)
    assert small.get_submodule("0").out_channels == 1
    assert not any(tensor.any() for tensor in small.get_submodule("0").parameters())


def test_a_channel_that_is_infinite_everywhere_stays() -> None:
    def logarithm(x: Tensor) -> Tensor:
        return x.abs().log()

    model = alive(Calls(logarithm, width=4))
    with torch.no_grad():
        model.first.weight[0], model.first.bias[0] = 0, 0  # its logarithm is minus infinity
        model.first.weight[1], model.first.bias[1] = 0, 2
        model.second.weight.abs_()
    small = compact(nn.Sequential(model, nn.Sigmoid()), example_inputs=IMAGES)
    assert small(IMAGES).abs().max() == 0
    assert small.get_submodule("0.first").out_channels == 4


def test_a_dropout_that_always_drops_stays() -> None:
    class Always(nn.Dropout):
        def train(self, mode: bool = True) -> Always:
            return super().train(True)

    model = nn.Sequential(nn.Linear(3, 4), Always(1.0), nn.Linear(4, 2))
    small = compact(model)
    assert torch.equal(small(torch.randn(2, 3)), model[2].bias.expand(2, -1))


def test_a_network_that_folded_a_norm_of_vectors_refuses_sequences() -> None:
    model = alive(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)))
    small = compacted(model, torch.randn(3, 5, dtype=torch.float64))
    with pytest.raises(ParameterError, match="2 axes"):
        small(torch.randn(3, 7, 5, dtype=torch.float64))


def test_a_convolution_network_refuses_a_single_image() -> None:
    small = compact(alive(Calls(nn.ReLU())))
    with pytest.raises(ParameterError, match="4 axes"):
        small(IMAGES[0])


def test_a_layer_that_runs_twice_stays_whole() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)
            self.last = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.layer(self.layer(x).relu())).relu())

    model = alive(Twice())
    with torch.no_grad():
        model.last.weight[:, 1:] = 0
    small = compacted(model, IMAGES)
    assert small.layer.out_channels == 3


@each(
    "norm",
    [
        nn.BatchNorm2d(6, affine=False),
        nn.GroupNorm(3, 6, affine=False),
        nn.InstanceNorm2d(6, track_running_stats=True),
    ],
)
def test_a_layer_without_weights_that_runs_twice_stays_whole(norm: nn.Module) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm = nn.Conv2d(3, 6, 3), copy.deepcopy(norm)
            self.last = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(torch.cat([self.norm(x.relu()), self.norm(x.tanh())], 1))

    model = alive(Twice())
    with torch.no_grad():
        model.last.weight[:, [0, 1, 6, 7, 8, 9]] = 0
    small = compact(model)
    assert_same_outputs(small, model, IMAGES)
    assert small.first.out_channels == 6


@each("way", ["added", "returned", "summed"])
def test_a_norm_keeps_its_statistics_where_they_are_read_elsewhere(way: str) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm, self.last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x, mean = self.norm(self.first(x).relu()), self.norm.running_mean
            x = x + mean.view(1, -1, 1, 1) if way == "added" else x
            x = x + mean.sum() if way == "summed" else x
            return {"map": self.last(x), "mean": 2 * mean}

    model = alive(Read())
    with torch.no_grad():
        model.last.weight[:, 2:] = 0
    assert_same_outputs(compact(model), model, IMAGES)


def test_bits_of_numbers_are_no_other_shape() -> None:
    def bits(x: Tensor) -> Tensor:
        whole = x.view(torch.int64)
        return whole.view(whole.size(0), 6, -1).view(whole.shape).view(torch.float64)

    model = zeroed(alive(Calls(bits)), "inputs", 0.5, seed=3)
    assert_same_outputs(compact(model, example_inputs=IMAGES), model, IMAGES)


def test_tied_weights_stay_one() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    small = compacted(zeroed(alive(model), "both", 0.5), torch.randn(3, 6, dtype=torch.float64))
    assert parameter_count(small) <= parameter_count(model)


def test_layers_written_as_functions_become_smaller() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
            self.matrix = nn.Parameter(torch.randn(2, 6))
            self.register_buffer("shift", torch.randn(2))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel, padding=1).relu().mean((2, 3))
            return F.linear(x, self.matrix, self.shift)

    model = alive(Functions())
    with torch.no_grad():
        model.matrix[:, 2:] = 0
    assert sorted(widths(compacted(model, IMAGES))) == [(2, 2), (3, 2)]


def test_a_weight_that_is_computed_is_left_alone() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight, self.bias)

    model = alive(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), Standardized(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        model[2].weight[:, 2:] = 0
        model[4].weight[:, 2:] = 0
    small = compact(model)
    assert_same_outputs(small, model, IMAGES)
    assert small.get_submodule("2").weight.shape == (4, 6, 3, 3)


def test_parametrized_weights_are_taken_as_they_are() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrize.register_parametrization(model[2], "weight", Half())
    small = compacted(model, IMAGES)
    assert sorted(widths(small)) == [(3, 2), (3, 3)]


class Half(nn.Module):
    """Zeros on half of the input channels."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (torch.arange(weight.shape[1]) < weight.shape[1] // 2).to(weight).view(1, -1, 1, 1)


@pytest.mark.parametrize("hooked", ["first", "between"])
def test_modules_with_hooks_stay_whole(hooked: str) -> None:
    model = alive(Calls(nn.ReLU()))
    with torch.no_grad():
        model.second.weight[:, 3:] = 0
    model.get_submodule(hooked).register_forward_hook(lambda module, inputs, output: output.flip(1))
    assert compacted(model, IMAGES).first.out_channels == 6


def test_a_learned_number_scales_every_channel() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
            self.scale = nn.Parameter(torch.tensor(0.3))
            self.last = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layers(x) * self.scale + 1)

    model = alive(Scaled())
    with torch.no_grad():
        model.last.weight[:, 2] = 0
    assert compacted(model, IMAGES).get_submodule("layers.2").out_channels == 2


def test_arguments_with_defaults_are_fixed_to_them() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0, relu: bool = False) -> Tensor:
            x = self.layer(x) * scale
            x = x if mask is None else x * mask
            return x.relu() if relu else x

    model, x = alive(Optional()), torch.randn(4, 3, dtype=torch.float64)
    small = compact(model)
    assert torch.equal(small(x), model.layer(x) * 2)


def test_several_inputs_and_outputs_stay() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
            together = self.one(x) + self.two(y)
            return self.last(together), [together]

    model = zeroed(alive(Pair()), "inputs", 0.5)
    x, y = torch.randn(2, 5, 3, dtype=torch.float64)
    one, (two,) = compact(model)(x, y)
    expected, (also,) = model(x, y)
    torch.testing.assert_close((one, two), (expected, also), rtol=1e-12, atol=1e-12)
    assert len(layers_of(compact(model))) == 3


def test_a_single_layer_is_a_network() -> None:
    model = zeroed(alive(nn.Conv2d(3, 4, 3)), "both", 0.5)
    small = compact(model)
    assert_same_outputs(small, model, IMAGES)
    assert widths(small) == [(1, 4)]
