"""Outputs of any two networks are compared: by task, in two precisions, from modules and from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import each
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.verification.comparison import Comparison
from sparsemtl.errors import CheckpointError, CompactionError, MaskError, ParameterError

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))


def model_of() -> sm.SharedBottom:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    model = sm.SharedBottom(encoder, [sm.Classification("a", 3), sm.Regression("b")])
    model(X)
    return model


def test_the_differences_are_those_of_each_task_and_precision() -> None:
    model = model_of().eval()
    other = model_of().eval()
    with torch.no_grad():
        other.heads["b"].bias += 0.5
        outputs = model(X), other(X)
    found = sm.verify(model, other, X)
    spread = max(float(outputs[0]["b"].abs().max()), float(outputs[0]["b"].std()))
    assert found.outputs["a"] == {"float64": 0.0, "float32": 0.0}
    assert found.float64 == found.outputs["b"]["float64"] == pytest.approx(0.5 / spread, rel=1e-5)
    assert found.float32 == pytest.approx(0.5 / spread, rel=1e-5)
    assert not found.equal
    assert "NOT equal" in str(found)
    assert "\n  b: " in str(found)
    assert sm.verify(model, other, X, task="a").equal
    assert list(json.loads(json.dumps(found.to_dict()))["outputs"]) == ["a", "b"]


def test_a_model_in_training_is_compared_in_eval_mode_and_stays_as_it_is() -> None:
    model = model_of().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert sm.verify(model, sm.compact(model), X).equal
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_are_equal_up_to_the_precision_that_they_are_stored_in() -> None:
    model = nn.Linear(4, 2).double()
    near = nn.Linear(4, 2).double()
    near.load_state_dict(model.state_dict())
    with torch.no_grad():
        near.weight *= 1 + 1e-6
    found = sm.verify(model, near, X)
    assert 1e-8 < found.float64 < 1e-5
    assert not found.equal
    assert sm.verify(model.float(), near, X).equal
    assert sm.verify(near.half(), model, X).equal


def test_a_compacted_network_says_its_difference_by_task() -> None:
    model = model_of()
    assert list(sm.compact(model).report.verification.outputs) == ["a", "b"]
    assert list(sm.compact(model, task="b").report.verification.outputs) == ["b"]
    assert sm.compact(model).report.verification.equal


def test_masks_and_networks_of_tasks_are_those_of_the_model() -> None:
    model = model_of()
    weight = "encoder.0.weight"
    masks = sm.TaskMasks(
        {task: {weight: torch.arange(32).view(8, 4) % 8 < kept} for task, kept in (("a", 4), ("b", 8))}
    )
    small = sm.compact(model, masks, task="a")
    assert sm.verify(model, small, X, task="a", masks=masks).equal
    assert not sm.verify(model, small, X, task="a").equal
    networks = sm.TaskNetworks.of_masks(masks)
    assert sm.verify(model, small, X, task="a", masks=networks).equal
    with masks.applied(model, "a"), pytest.raises(MaskError, match="verify was called inside"):
        sm.verify(model, small, X, task="a")
    with pytest.raises(ParameterError, match="name the one"):
        sm.verify(model, small, X, masks=masks)


@pytest.mark.parametrize("suffix", ["safetensors", "pt2", "onnx"])
def test_files_are_compared(suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    model = model_of()
    path = tmp_path / f"small.{suffix}"
    sm.export(sm.compact(model), path)
    found = sm.verify(model, path, X)
    assert found.equal
    assert list(found.outputs) == ["a", "b"]
    assert (found.float64 is None) == (suffix == "onnx")
    assert ("float64" in found.only) == (suffix == "onnx")
    assert sm.verify(str(path), model, X).equal
    path.write_bytes(b"no network")
    with pytest.raises(CheckpointError, match=path.name):
        sm.verify(model, path, X)


def test_an_exported_program_and_a_network_of_fewer_tasks_are_compared() -> None:
    model = model_of().eval()
    program = torch.export.export(sm.compact(model, tasks=["b"]), (X,))
    found = sm.verify(model, program, X)
    assert found.equal
    assert found.only == "without a, which `small` does not compute"


class Pair(nn.Module):
    """Two inputs, two outputs in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(y) + x


def test_inputs_by_name_and_outputs_in_a_tuple_are_compared() -> None:
    model = Pair()
    assert list(sm.verify(model, model, {"x": X, "y": X}).outputs) == ["0", "1"]


def test_random_outputs_are_not_verified() -> None:
    found = sm.verify(nn.Sequential(nn.Linear(4, 2), Noise()), nn.Linear(4, 2), X)
    assert not found.verified
    assert not found.equal
    assert "not the same from one run to the next" in str(found)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


REFUSED: dict[str, tuple[Callable[[sm.SharedBottom], Any], type[Exception], str]] = {
    "other inputs": (
        lambda m: sm.verify(m, m, torch.rand(3, 5)),
        ParameterError,
        r"the model cannot be run .*\(3, 5\)",
    ),
    "small refuses": (lambda m: sm.verify(m, nn.Linear(3, 2), X), CompactionError, r"`small` does not run .*\(6, 4\)"),
    "other shapes": (
        lambda m: sm.verify(m, nn.Linear(4, 3), X, task="b"),
        CompactionError,
        r"of shape \(6, 3\), and the model of shape \(6, 1\)",
    ),
    "no task": (lambda m: sm.verify(m, nn.Linear(4, 3), X), ParameterError, "outputs a, b, and `small` has 1: name"),
    "unknown task": (lambda m: sm.verify(m, m, X, task="c"), ParameterError, "unknown task 'c'. Known: a, b"),
    "no network": (lambda m: sm.verify(m, 3, X), ParameterError, "a module, .* got int"),
    "no file": (lambda m: sm.verify(m, "nothing.onnx", X), ParameterError, "there is no file nothing.onnx"),
    "no suffix": (lambda m: sm.verify(m, __file__, X), ParameterError, "one of .safetensors, .pt2, .onnx, got test_v"),
    "masks of a file": (
        lambda m: sm.verify("small.onnx", m, X, norms=sm.TaskNorms(m), task="a"),
        ParameterError,
        "those of a module",
    ),
}


@each("case", REFUSED)
def test_what_cannot_be_compared_is_refused(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call(model_of().eval())


@torch.no_grad()
def test_complex_weights_stay_whole_and_are_compared_in_full() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(*sizes, dtype=torch.cfloat) for sizes in ((8, 16), (16, 16), (16, 3))]
    layers[1].weight[:8] = 0  # the outputs are constants with an imaginary part
    model, x = nn.Sequential(*layers), torch.randn(4, 8, dtype=torch.cfloat)
    small = sm.compact(model, example_inputs=x)
    assert small.report.verification.float64 == 0
    assert torch.equal(small(x), model(x))
    other = nn.Sequential(*layers[:2], nn.Linear(16, 3, dtype=torch.cfloat))
    other[2].load_state_dict({name: tensor.real + 0j for name, tensor in layers[2].state_dict().items()})
    assert not sm.verify(model, other, x).equal


class OfOwnPrecision(nn.Module):
    """Network that names the dtypes of its parts, so that it runs in no other precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.last = nn.Linear(8, 16).bfloat16(), nn.Linear(16, 16), nn.Linear(16, 3)
        self.wrong = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.two(torch.relu(self.one(x.bfloat16())).float()))) + self.wrong


def test_a_model_that_names_its_precisions_is_compared_in_them() -> None:
    model = OfOwnPrecision()
    model.two.weight.data[:, ::2] = 0
    small = sm.compact(model, example_inputs=torch.randn(4, 8))
    found = small.report.verification
    assert found.equal
    assert found.outputs["output"].keys() == {"bfloat16"}
    assert "in bfloat16" in str(found)
    assert small.report.layer("one").outputs == (16, 8)
    comparison = Comparison(model, Inputs((torch.randn(4, 8),)))
    model.wrong = 0.5
    with pytest.raises(CompactionError, match=r"differ by .* in bfloat16"):
        comparison.run_as_they_are(small)
