"""Operations that copy channels to other places are followed: shuffles, flips, rolls, constant indices, repetitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compaction_toys import PATTERNS, alive, assert_same_outputs, compacted, zeroed
from loops import each
from torch import Tensor, nn

import sparsemtl as sm

Operation = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, operation: Operation, made: int, read: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, made, 1), nn.Conv2d(read, 5, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x).sigmoid()))


def shuffled_by_views(x: Tensor) -> Tensor:
    """The channel shuffle of ShuffleNet (Ma et al., 2018), as torchvision writes it."""
    batch, channels, height, width = x.size()
    x = x.view(batch, 4, channels // 4, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def shuffled_by_flattening(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)


CASES: dict[str, tuple[Operation, int, int, int]] = {
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), 16, 4, 8),
    "PixelShuffle": (nn.PixelShuffle(2), 16, 4, 8),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, downscale_factor=2), 4, 16, 2),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), 4, 16, 2),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 4), 16, 16, 8),
    "ChannelShuffle": (nn.ChannelShuffle(4), 16, 16, 8),
    "shuffle by views": (shuffled_by_views, 16, 16, 8),
    "shuffle by flattening": (shuffled_by_flattening, 16, 16, 8),
    "flip": (lambda x: x.flip(1), 16, 16, 8),
    "roll": (lambda x: torch.roll(x, 3, 1), 16, 16, 8),
    "roll of positions": (lambda x: x.roll((1, 2), dims=(2, 3)), 16, 16, 8),
    "index": (lambda x: x.index_select(1, torch.tensor([3, 0, 3, 1])), 4, 4, 2),
    "steps": (lambda x: x[:, 1::2], 16, 8, 4),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 8, 16, 8),
    "repeated positions": (lambda x: torch.tile(x, (1, 1, 2, 2)), 16, 16, 8),
    "unflatten": (lambda x: nn.Unflatten(1, (8, 2))(x).amax(2), 16, 8, 8),
    "norm of positions": (lambda x: F.lp_pool2d(x, 2, 2), 16, 16, 8),
}
"""Operation, channels that it reads and makes, and channels that are left if the second half of them is not read."""


@each("name", CASES)
def test_channels_that_nothing_reads_behind_a_copy_go(name: str) -> None:
    operation, made, read, left = CASES[name]
    model = alive(Between(operation, made, read))
    with torch.no_grad():
        model.last.weight[:, read // 2 :] = 0
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    small = compacted(model, x, example_inputs=x)
    assert small.report.layer("first").outputs == (made, left)
    assert small.report.verification.only == ""
    other = torch.randn(3, 3, 8, 4, dtype=torch.float64)
    assert_same_outputs(small, model, other)


@each(("name", "pattern"), zip(CASES, itertools.cycle(PATTERNS), strict=False))
def test_outputs_are_the_same_with_any_zeros(name: str, pattern: str) -> None:
    operation, made, read, _ = CASES[name]
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = zeroed(alive(Between(operation, made, read)), pattern, 0.6, len(name))
    small = sm.compact(model, example_inputs=x)
    assert_same_outputs(small, model, x)
    assert sm.parameter_count(small) <= sm.parameter_count(model)


def test_constants_pass_a_copy() -> None:
    model = alive(Between(lambda x: F.pixel_shuffle(F.channel_shuffle(x, 2), 2), 16, 4))
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.bias.copy_(torch.arange(8).repeat_interleave(2).view(4, 2, 2).transpose(1, 2).flatten())
        model.first.bias[:] = model.first.bias[0]
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert compacted(model, x, example_inputs=x).report.layer("last").inputs == (4, 1)


def test_a_copy_that_loses_no_channel_stays_as_it_is() -> None:
    model = alive(Between(nn.ChannelShuffle(4), 16, 16))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small = compacted(model, x, example_inputs=x)
    assert any(isinstance(module, nn.ChannelShuffle) for module in small.modules())


def test_an_index_that_is_computed_keeps_what_it_reads() -> None:
    model = alive(Between(lambda x: x.index_select(1, x.mean((0, 2, 3)).argsort()), 8, 8))
    with torch.no_grad():
        model.last.weight[:, 4:] = 0
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert compacted(model, x, example_inputs=x).report.layer("first").outputs == (8, 8)


@pytest.mark.slow  # exports seventeen files
@pytest.mark.parametrize("name", CASES)
def test_files_hold_copies(name: str, tmp_path: Path) -> None:
    operation, made, read, _ = CASES[name]
    model = zeroed(alive(Between(operation, made, read)), "inputs", 0.5).float()
    small = sm.compact(model, example_inputs=torch.randn(2, 3, 4, 4))
    file = sm.export(small, tmp_path / "net.safetensors", axes=(0, 2, 3))
    assert (file.difference, file.batch) == (0, None)
    assert sm.verify(model, file.path, torch.randn(3, 3, 8, 4)).equal
