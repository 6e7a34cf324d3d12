from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsemtl.backbones import ENCODERS, MLP
from sparsemtl.errors import ParameterError


def test_features_equal_the_layers_written_out() -> None:
    model = MLP((2, 3), hidden=[5, 4])
    x = torch.randn(7, 2, 3)
    first, second = (layer for layer in model.layers if isinstance(layer, nn.Linear))
    expected = torch.relu(torch.relu(x.reshape(7, 6) @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("input_shape", [(5,), (1, 8, 8), (3, 4, 5, 6)])
def test_samples_of_any_shape_become_features_of_the_last_width(input_shape: tuple[int, ...]) -> None:
    model = ENCODERS.build("mlp", input_shape, hidden=[6, 3])
    assert model(torch.rand(4, *input_shape)).shape == (4, 3)
    assert model.out_features == 3


def test_a_normed_layer_has_no_bias_of_its_own() -> None:
    model = MLP((4,), hidden=[8, 8], norm=True)
    assert [layer.bias for layer in model.layers if isinstance(layer, nn.Linear)] == [None, None]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in model.layers) == 2


def test_dropout_acts_in_training_only() -> None:
    model = MLP((16,), hidden=[64], dropout=0.5)
    x = torch.rand(8, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("hidden", [[], [8, 0], [2.5]])
def test_widths_must_be_counts(hidden: list[int]) -> None:
    with pytest.raises(ParameterError, match="'hidden' parameter of MLP"):
        MLP((4,), hidden=hidden)


@pytest.mark.parametrize("dropout", [1.0, -0.1])
def test_dropout_must_be_a_share(dropout: float) -> None:
    with pytest.raises(ParameterError, match=r"'dropout' parameter of MLP must be a float in \[0, 1\)"):
        MLP((4,), dropout=dropout)


@pytest.mark.parametrize("input_shape", [(), (3, 0)])
def test_an_empty_sample_is_refused(input_shape: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="at least one number"):
        MLP(input_shape)
