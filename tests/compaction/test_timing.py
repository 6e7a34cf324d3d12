"""Times of networks before and after compaction: runtimes, differences, and reasons."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsemtl as sm
from sparsemtl.compaction import Speedup, Timing
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.timing import runtimes, sparse_layers
from sparsemtl.compaction.timing.measure import _reason
from sparsemtl.compaction.timing.sparse_layers import SparseLinear
from sparsemtl.errors import CompactionError, CompactionWarning, ParameterError
from sparsemtl.kernels.processor import processor_name


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    layers[2].weight.data[:, :24] = 0
    return layers, sm.compact(layers, example_inputs=torch.rand(8, 4))


def test_torch_is_timed_in_both_precisions_with_the_difference_of_the_outputs() -> None:
    dense, small = networks()
    before = {name: p.clone() for name, p in dense.state_dict().items()}
    plain, half = sm.speedups(dense, small, torch.rand(8, 4), repeats=2, runtimes=["eager", "half"])
    assert plain.difference == 0
    assert half.difference is not None
    assert 1e-5 < half.difference < 0.1
    for found in (plain, half):
        assert found.macs == (8 * (4 * 32 + 32 * 3), 8 * (4 * 8 + 8 * 3))
        assert (found.batch, found.threads, found.processor) == (8, torch.get_num_threads(), processor_name())
        assert 0 < found.after.median <= found.after.p95
    assert all(torch.equal(p, before[name]) for name, p in dense.state_dict().items())


def test_images_are_timed_in_two_layouts_with_equal_outputs() -> None:
    made = runtimes.eager({"before": nn.Conv2d(3, 2, 1)}, Inputs((torch.rand(2, 3, 4, 4),)))
    assert list(made) == [("before", ""), ("before", "channels last")]
    outputs = [run() for run in made.values()]
    torch.testing.assert_close(*outputs)


def test_linear_layers_of_few_weights_are_timed_without_their_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {SparseLinear: 1.0, nn.Linear: 2.0}
    monkeypatch.setattr(sparse_layers, "milliseconds", lambda layer, x: times[type(layer)])
    dense, _ = networks()
    x = torch.rand(2, 5, 4)
    dense[0].weight.data[:, 1:] = 0
    made = runtimes.sparse({"before": dense}, Inputs((x,)))
    run = made["before", ""]
    assert [type(layer) for layer in run.func] == [SparseLinear, nn.ReLU, SparseLinear]  # type: ignore[attr-defined]
    with torch.no_grad():
        torch.testing.assert_close(run(), dense(x))
    times[SparseLinear] = 3.0
    with pytest.raises(CompactionError, match="faster in no linear layer on this batch"):
        runtimes.sparse({"before": dense}, Inputs((x,)))


def test_compact_takes_layers_without_zeros_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dense, _ = networks()
    dense.append(nn.Linear(3, 2))
    x = torch.rand(2, 5, 4)
    dense[2].weight.data *= torch.arange(3)[:, None] == torch.arange(32) % 3  # one weight per channel that is read
    times = {SparseLinear: 1.0, nn.Linear: 2.0}
    monkeypatch.setattr(sparse_layers, "milliseconds", lambda layer, x: times[type(layer)])
    small = sm.compact(dense, example_inputs=x, multiple_of="sparse")
    left = int(dense[2].weight.count_nonzero())
    assert small.report.rounding.endswith("1 of 1 with zeros")
    assert len(small.get_parameter("2.values")) == left
    plain = sm.compact(dense, example_inputs=x)
    assert sm.macs(small, x) == sm.macs(plain, x) - 10 * (plain.get_parameter("2.weight").numel() - left)
    torch.save(small, tmp_path / "small.pt")
    with torch.no_grad():
        for found in (small, copy.deepcopy(small), torch.load(tmp_path / "small.pt", weights_only=False)):
            torch.testing.assert_close(found(x), dense(x))
            torch.testing.assert_close(found(x[0]), dense(x[0]))
    with pytest.raises(CompactionError, match="it has linear layers in CSR, which run in torch alone"):
        sm.export(small, tmp_path / "small.safetensors")
    times[SparseLinear] = 3.0
    slower = sm.compact(dense, example_inputs=x, multiple_of="sparse")
    assert slower.report.rounding.endswith("0 of 1 with zeros")
    assert torch.equal(slower(x), plain(x))


def test_a_runtime_that_cannot_run_a_network_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> runtimes.Runs:
        raise CompactionError("it has no compiler.")

    monkeypatch.setitem(runtimes.RUNTIMES, "compile", refused)
    with pytest.warns(CompactionWarning, match="runtime 'compile' was left out: it has no compiler"):
        found = list(sm.speedups(*networks(), torch.rand(8, 4), repeats=1, runtimes=["compile", "eager"]))
    assert [each.runtime for each in found] == ["eager"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"runtimes": ["onnx"]}, "unknown runtime 'onnx'. Did you mean 'onnxruntime'"),
        ({"repeats": 0}, "`repeats` must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        next(sm.speedups(*networks(), torch.rand(8, 4), **options))  # type: ignore[arg-type]


def speedup(before: float, after: float, left: float) -> Speedup:
    macs = 1000, round(1000 * left)
    return Speedup("onnxruntime", 1, 1, Timing(before, before), Timing(after, after), macs)


def test_the_reason_says_why_less_became_time() -> None:
    narrow = nn.Sequential(nn.Conv2d(8, 13, 1), nn.Conv2d(13, 8, 1))
    assert _reason(speedup(10, 5.5, 0.5), narrow) == ""  # 90 % became time
    assert "no multiply-add is saved" in _reason(speedup(10, 10, 1.0), narrow)
    reason = _reason(speedup(10, 9, 0.2), narrow)
    assert "2 of 2 convolutions have a number of channels that is no multiple of 8" in reason
    assert "22% of the multiply-adds per second" in reason
    assert "95% of the multiply-adds are left" in _reason(speedup(10, 10, 0.95), narrow)
    assert "2 calls of 10 µs" in _reason(speedup(0.021, 0.02, 0.2), narrow)


@pytest.mark.slow  # exports four files
def test_onnxruntime_is_timed_in_single_precision_and_in_eight_bits() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    plain, int8 = sm.speedups(*networks(), torch.rand(8, 4), repeats=2, runtimes=["onnxruntime", "int8"])
    assert plain.difference is not None
    assert plain.difference < 1e-5
    assert int8.difference is not None
    assert 1e-5 < int8.difference < 0.2
    assert dataclasses.replace(plain, runtime="int8").batch == int8.batch


@pytest.mark.slow  # compiles for a minute
def test_compiled_networks_are_timed() -> None:
    found = list(sm.speedups(*networks(), torch.rand(8, 4), repeats=2, runtimes=["compile"]))
    assert all(each.difference is not None and each.difference < 1e-5 for each in found)
