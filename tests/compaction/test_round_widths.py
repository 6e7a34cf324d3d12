"""Numbers of channels that are multiples of a block of the runtime: channels that change nothing fill them up."""

from __future__ import annotations

import pytest
import torch
from compaction_toys import RandomNetwork, alive, compacted, layers_of, zeroed
from torch import nn

import sparsemtl as sm
from sparsemtl.backbones import CNN, SegNet, resnet18
from sparsemtl.errors import ParameterError

ENCODERS = {
    "cnn": lambda: CNN((3, 16, 16), widths=[20, 24, 17]),
    "resnet18": lambda: resnet18((3, 16, 16), width=16),
    "segnet": lambda: SegNet((3, 32, 32), width=8),
}
IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64)


def network(encoder: str) -> nn.Module:
    torch.manual_seed(0)
    return zeroed(alive(ENCODERS[encoder]()), "both", 0.5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_outputs_stay_and_convolutions_are_as_wide_as_a_multiple_or_as_before(encoder: str) -> None:
    model = network(encoder)
    small = compacted(model, IMAGES, example_inputs=IMAGES, multiple_of=8)
    plain = compacted(model, IMAGES, example_inputs=IMAGES)
    filled = 0
    for layer in small.report.layers:
        if layer.kind != "Conv2d" or layer.removed:
            continue
        before, after = layer.outputs
        least = plain.report.layer(layer.name).outputs[1]
        assert after in (least, before) or after % 8 == 0
        if "fill up a multiple of 8" in layer.why:
            assert after % 8 == 0
            filled += after > least
    assert filled


@pytest.mark.parametrize("seed", range(5))
def test_outputs_of_random_networks_stay(seed: int) -> None:
    model = zeroed(alive(RandomNetwork(seed), seed), "both", 0.4, seed)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    compacted(model, x, example_inputs=x, multiple_of=4)


def test_a_network_that_is_compacted_again_gets_as_narrow_as_without() -> None:
    model = network("cnn")
    round_ = sm.compact(model, example_inputs=IMAGES, multiple_of=8)
    again = sm.compact(round_, example_inputs=IMAGES)
    narrow = sm.compact(model, example_inputs=IMAGES)
    shapes = [[tuple(layer.weight.shape) for layer in layers_of(each)] for each in (again, narrow)]
    assert shapes[0][:-1] == shapes[1][:-1]  # the last one makes the outputs, whose constants are inserted behind it


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_below_one_is_refused(multiple: int) -> None:
    with pytest.raises(ParameterError, match=f"`multiple_of` must be at least 1, got {multiple}"):
        sm.compact(network("cnn"), multiple_of=multiple)
