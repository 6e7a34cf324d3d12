from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsemtl.errors import ParameterError
from sparsemtl.heads import HEADS, MLPHead


@pytest.mark.parametrize("widths", [[8], [8, 4, 6]])
def test_outputs_are_the_layers_written_out(widths: list[int]) -> None:
    head = MLPHead(5, 3, widths=widths)
    features = torch.randn(7, 5)
    expected = features
    *hidden, last = (layer for layer in head.layers if isinstance(layer, nn.Linear))
    assert [layer.out_features for layer in hidden] == widths
    for layer in hidden:
        expected = (expected @ layer.weight.T + layer.bias).relu()
    torch.testing.assert_close(head(features), expected @ last.weight.T + last.bias)


def test_the_tower_of_the_papers_has_eight_units() -> None:
    assert [tuple(p.shape) for p in MLPHead(32, 2).parameters() if p.ndim == 2] == [(8, 32), (2, 8)]


def test_a_map_is_averaged_over_positions_first() -> None:
    head = MLPHead(5, 3, 4, widths=[8])
    maps = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(head(maps), head(maps.mean((2, 3))))


@pytest.mark.parametrize("widths", [[], [0], [8, 2.5]])
def test_widths_are_one_or_more_counts(widths: list[float]) -> None:
    with pytest.raises(ParameterError, match="'widths' parameter of MLPHead"):
        HEADS.build("mlp", 5, 3, None, widths=widths)
