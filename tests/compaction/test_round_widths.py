"""Numbers of channels that are multiples of a block of the runtime: channels that change nothing fill them up."""

from __future__ import annotations

import pickle

import pytest
import torch
from compaction_toys import RandomNetwork, alive, assert_same_outputs, compacted, layers_of, zeroed
from torch import nn

import sparsemtl as sm
from sparsemtl.backbones import CNN, SegNet, resnet18
from sparsemtl.compaction.timing import rounding
from sparsemtl.compaction.timing.measure import Timing
from sparsemtl.errors import ParameterError

ENCODERS = {
    "cnn": lambda: CNN((3, 16, 16), widths=[20, 24, 17]),
    "wide cnn": lambda: CNN((3, 16, 16), widths=[48, 48]),
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
    small = sm.compact(model, example_inputs=x, multiple_of=4)
    assert_same_outputs(small, model, x)
    assert sm.macs(small, x) <= sm.macs(model, x)


def test_a_network_that_is_compacted_again_gets_as_narrow_as_without() -> None:
    model = network("cnn")
    round_ = sm.compact(model, example_inputs=IMAGES, multiple_of=8)
    again = sm.compact(round_, example_inputs=IMAGES)
    narrow = sm.compact(model, example_inputs=IMAGES)
    shapes = [[tuple(layer.weight.shape) for layer in layers_of(each)] for each in (again, narrow)]
    assert shapes[0][:-1] == shapes[1][:-1]  # the last one makes the outputs, whose constants are inserted behind it


def times(monkeypatch: pytest.MonkeyPatch, *milliseconds: float) -> list[str]:
    """Replace the clock by given times of the multiples 1, 4, 8 and 16; return the runtimes that it is asked for."""
    asked: list[str] = []

    def measured(networks: dict[str, nn.Module], inputs: object, runtime: str, *, repeats: int) -> dict[str, Timing]:
        asked.append(runtime)
        given = dict(zip(("1", "4", "8", "16"), milliseconds, strict=True))
        return {name: Timing(given[name], given[name]) for name in networks}

    monkeypatch.setattr(rounding, "times_of", measured)
    return asked


@pytest.mark.parametrize(("milliseconds", "chosen"), [((9, 7, 5, 6), 8), ((5, 4.9, 4.95, 4.86), 1)])
def test_the_fastest_multiple_is_chosen_and_a_smaller_one_if_it_is_about_as_fast(
    milliseconds: tuple[float, ...], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = times(monkeypatch, *milliseconds)
    model = network("wide cnn")
    small = compacted(model, IMAGES, example_inputs=IMAGES, multiple_of="onnxruntime")
    expected = sm.compact(model, example_inputs=IMAGES, multiple_of=chosen)
    assert [p.shape for p in small.parameters()] == [p.shape for p in expected.parameters()]
    assert torch.equal(small(IMAGES), expected(IMAGES))
    assert asked == ["onnxruntime"]
    assert f"channels are multiples of {chosen}, chosen by the time in onnxruntime: " in str(small.report)
    assert pickle.loads(pickle.dumps(small)).report == small.report


def test_networks_that_no_multiple_changes_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = times(monkeypatch)
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert sm.parameter_count(sm.compact(layers, example_inputs=torch.rand(3, 4), multiple_of="eager")) == 58
    assert asked == []


def test_the_time_of_torch_is_measured_in_its_faster_layout_on_the_whole_example() -> None:
    small = sm.compact(network("cnn"), example_inputs={"x": IMAGES.repeat(6, 1, 1, 1)}, multiple_of="eager")
    assert "chosen by the time in eager" in small.report.rounding
    assert small.report.verification.verified


def test_a_runtime_that_is_unknown_and_a_missing_example_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"`multiple_of`: unknown runtime 'onnx'.*'onnxruntime'"):
        sm.compact(network("cnn"), example_inputs=IMAGES, multiple_of="onnx")
    with pytest.raises(ParameterError, match="measures on an example: give a batch"):
        sm.compact(network("cnn"), multiple_of="eager")


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_below_one_is_refused(multiple: int) -> None:
    with pytest.raises(ParameterError, match=f"`multiple_of` must be at least 1, got {multiple}"):
        sm.compact(network("cnn"), multiple_of=multiple)
