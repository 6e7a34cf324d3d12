from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsemtl.backbones import CNN, ENCODERS
from sparsemtl.errors import ParameterError


def test_features_equal_the_layers_written_out() -> None:
    model = CNN((2, 8, 8), widths=[3, 4], norm=False)
    x = torch.randn(5, 2, 8, 8)
    first, second = (layer for layer in model.layers if isinstance(layer, nn.Conv2d))
    inner = F.max_pool2d(F.relu(F.conv2d(x, first.weight, first.bias, padding=1)), 2)
    expected = F.relu(F.conv2d(inner, second.weight, second.bias, padding=1)).mean((2, 3))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 36, 30)])
def test_images_of_any_size_become_features_of_the_last_width(input_shape: tuple[int, ...]) -> None:
    model = ENCODERS.build("cnn", input_shape, widths=[4, 8, 6])
    assert model(torch.rand(2, *input_shape)).shape == (2, 6)
    assert model.out_features == 6


def test_a_normed_convolution_has_no_bias_of_its_own() -> None:
    model = CNN((1, 8, 8))
    assert all(layer.bias is None for layer in model.layers if isinstance(layer, nn.Conv2d))


def test_an_image_that_pooling_would_use_up_is_refused() -> None:
    CNN((1, 4, 4), widths=[2, 2, 2])
    with pytest.raises(ParameterError, match="needs at least 8x8 pixels, got 9x7"):
        CNN((1, 9, 7), widths=[2, 2, 2, 2])


def test_a_table_row_is_not_an_image() -> None:
    with pytest.raises(ParameterError, match=r"\(channels, height, width\), got input_shape=\(41,\)"):
        CNN((41,))
