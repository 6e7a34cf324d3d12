"""Convolutions of several groups and group norms lose whole groups, and as many channels as every group can spare."""

from __future__ import annotations

import pytest
import torch
from compaction_toys import alive, compacted, widths, zeroed
from torch import Tensor, nn

import sparsemtl as sm

IMAGES = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(*between: nn.Module, inputs: int = 12, outputs: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return alive(nn.Sequential(nn.Conv2d(3, inputs, 1), *between, nn.Conv2d(outputs, 2, 1)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_outputs_of_random_groups_stay(padding: str, seed: int) -> None:
    convolution = nn.Conv2d(12, 16, 3, padding=1, groups=4, padding_mode=padding, bias=seed % 2 == 0)
    model = zeroed(network(nn.ReLU(), convolution, nn.ReLU(), outputs=16), "both", 0.5, seed)
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    (first, second, third) = widths(small)
    assert first[1] == second[0] <= 12
    assert second[1] == third[0] <= 16


def test_sizes_are_those_of_a_count_by_hand() -> None:
    """Of 4 groups with 3 inputs and 4 outputs, one goes; the widest of the others has 2 inputs and 3 outputs."""
    model = network(nn.Conv2d(12, 16, 1, groups=4), nn.ReLU(), outputs=16)
    with torch.no_grad():
        model[3].weight[:, [0, 1, 2, 3, 4, 8, 9, 15, 14]] = 0  # leaves 0, 3, 2 and 2
        model[1].weight[4:8, 2] = 0
        model[1].weight[8:16, :2] = 0
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    assert widths(small) == [(3, 6), (6, 9), (9, 2)]
    grouped = small.get_submodule("1")
    assert (grouped.groups, tuple(grouped.weight.shape)) == (3, (9, 2, 1, 1))
    assert small.report.layer("1").why == "2 outputs and 2 inputs fill up groups, which are all as wide as the widest"
    assert small.report.layer("0").why.startswith("'1' (Conv2d): 2 outputs")


def test_depthwise_convolutions_with_a_multiplier_lose_channels_with_their_pointwise_reader() -> None:
    model = network(nn.Conv2d(12, 24, 3, padding=1, groups=12), nn.ReLU(), outputs=24)
    with torch.no_grad():
        model[3].weight[:, :10] = 0
        model[3].weight[:, 11] = 0
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    assert widths(small) == [(3, 7), (7, 14), (14, 2)]


def test_groups_that_a_network_of_unknown_channels_feeds_are_selected_if_that_pays() -> None:
    model = alive(nn.Sequential(nn.Softmax(1), nn.Conv2d(64, 64, 3, groups=4), nn.Conv2d(64, 2, 1)))
    x = torch.rand(2, 64, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        model[2].weight[:, :32] = 0
    assert compacted(model, x, example_inputs=x).get_submodule("1").groups == 2
    tiny = alive(nn.Sequential(nn.Softmax(1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1)))
    with torch.no_grad():
        tiny[2].weight[:, :4] = 0
    y = x[:, :8]
    assert compacted(tiny, y, example_inputs=y).get_submodule("1").groups == 4


def test_group_norms_keep_all_channels_of_a_group_that_is_read() -> None:
    model = network(nn.GroupNorm(4, 12), nn.ReLU())
    with torch.no_grad():
        model[3].weight[:, :5] = 0
        model[1].weight.normal_()
        model[1].bias.normal_()
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    assert (small.get_submodule("1").num_groups, small.get_submodule("1").num_channels) == (3, 9)
    assert widths(small) == [(3, 9), (9, 2)]
    assert "normalized together" in small.report.layer("1").why


def test_a_group_norm_whose_scale_is_zero_is_a_constant() -> None:
    model = network(nn.GroupNorm(4, 12))
    with torch.no_grad():
        model[1].weight[:6] = 0
        model[1].bias.normal_()
    assert widths(compacted(model, IMAGES, example_inputs=IMAGES)) == [(3, 6), (6, 2)]


class ResNeXt(nn.Module):
    """A block of groups with a shortcut, squeeze and excitation, and group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(8, 12, 1), nn.GroupNorm(6, 12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.ReLU()
        )
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.out, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x + self.out(y * gate)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_groups_with_gates_become_smaller(seed: int) -> None:
    torch.manual_seed(0)
    model = alive(ResNeXt())
    with torch.no_grad():
        model.out.weight[:, 4 * seed : 4 * seed + 4] = 0
        model.squeeze.weight[:, 4 * seed : 4 * seed + 4] = 0
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    assert small.block.get_submodule("3").groups == 2
    assert small.block.get_submodule("1").num_groups == 4
    assert (small.out.in_channels, small.excite.out_channels, small.squeeze.in_channels) == (8, 8, 8)


def test_a_network_that_is_compacted_again_stays_as_it_is() -> None:
    model = zeroed(network(nn.Conv2d(12, 16, 3, padding=1, groups=4), nn.ReLU(), outputs=16), "both", 0.4)
    small = sm.compact(model, example_inputs=IMAGES)
    assert sm.parameter_count(sm.compact(small)) == sm.parameter_count(small)
