"""Columns of embeddings, and channels of parameters that an operation reads, go where they change nothing."""

from __future__ import annotations

import pytest
import torch
from compaction_toys import alive, assert_same_outputs, compacted
from torch import Tensor, nn

import sparsemtl as sm

WORDS = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Text(nn.Module):
    """An embedding, and what reads it."""

    def __init__(self, table: nn.Module, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.scale = table, nn.Parameter(torch.randn(width))
        self.first, self.head = nn.Linear(width, 6), nn.Linear(6, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(self.table(words) * self.scale)))


def test_columns_that_are_constant_or_that_nothing_reads_are_gone() -> None:
    """Column 0 is not read, 1 is zero, 2 has the scale zero; 3 is constant and stays, as its scale is a product."""
    model = Text(nn.Embedding(9, 8, padding_idx=0)).double().eval()
    with torch.no_grad():
        model.first.weight[:, 0] = 0
        model.table.weight[:, 1] = 0
        model.scale[2] = 0
    small = sm.compact(model, example_inputs=WORDS)
    assert_same_outputs(small, model, WORDS)
    assert (small.table.embedding_dim, tuple(small.table.weight.shape)) == (5, (9, 5))
    assert tuple(small.scale.shape) == (5,)
    assert small.report.layer("table").outputs == (8, 5)
    assert_same_outputs(small, model, WORDS[:, :3])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_lose_columns_and_constants_of_empty_bags_stay(mode: str) -> None:
    class Bags(Text):
        def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
            return self.head(torch.relu(self.first(self.table(words, offsets) + self.scale)))

    model = Bags(nn.EmbeddingBag(9, 8, mode=mode)).double().eval()
    with torch.no_grad():
        model.table.weight[:, 0] = 0.5
        model.table.weight[:, 1] = 0
        model.first.weight[:, 2:4] = 0
    example = WORDS.flatten(), torch.tensor([0, 4, 4, 9])
    small = sm.compact(model, example_inputs=example)
    with torch.no_grad():
        assert torch.allclose(small(*example), model(*example), rtol=0, atol=1e-13)
    assert small.table.embedding_dim == 6


def test_tables_that_stay_whole_say_why() -> None:
    scaled = Text(nn.Embedding(9, 8, max_norm=1.0)).double().eval()
    with torch.no_grad():
        scaled.first.weight[:, :4] = 0
    report = sm.compact(scaled, example_inputs=WORDS).report
    assert report.layer("table").why == "its rows are scaled by their norm over all columns (max_norm)"

    class Tied(Text):
        def __init__(self) -> None:
            super().__init__(nn.Embedding(9, 6), 6)
            self.last = nn.Linear(6, 9, bias=False)
            self.last.weight = self.table.weight

        def forward(self, words: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(self.table(words))))

    tied = Tied().eval()
    with torch.no_grad():
        tied.first.weight[:, :4] = 0
    assert sm.compact(tied, example_inputs=WORDS).report.layer("table").why == "its weights are read more than once"


class Scaled(nn.Module):
    """A block whose branch has a scale per channel, with maps of positions, as in ConvNeXt and CaiT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.first, self.second = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 1)
        self.places = nn.Parameter(torch.randn(1, 8, 5, 5))
        self.shift = nn.Parameter(torch.randn(1, 10, 1, 1))
        self.gamma = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.places
        return self.head(x + self.gamma.view(-1, 1, 1) * self.second(torch.relu(self.first(x) + self.shift)))


def test_parameters_per_channel_lose_the_channels_of_what_they_are_read_with() -> None:
    model = alive(Scaled())
    with torch.no_grad():
        model.head.weight[:, :3] = 0
        model.first.weight[:, :2] = 0
        model.second.weight[:, :4] = 0
        model.gamma[5] = 0
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    shapes = {name: tuple(tensor.shape) for name, tensor in small.named_parameters()}
    assert (shapes["places"], shapes["shift"], shapes["gamma"]) == ((1, 6, 5, 5), (1, 6, 1, 1), (5, 1, 1))
    assert small.second.out_channels == 5


def test_a_parameter_that_is_read_twice_stays_whole() -> None:
    class Twice(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x) * self.gamma.view(-1, 1, 1)
            return self.head(x + self.gamma.view(-1, 1, 1))

    model = alive(Twice())
    with torch.no_grad():
        model.head.weight[:, :3] = 0
    small = compacted(model, IMAGES, example_inputs=IMAGES)
    assert tuple(small.gamma.shape) == (8,)
