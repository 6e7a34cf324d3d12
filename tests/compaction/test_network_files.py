"""Files of networks are read with the inputs that they take, which can be drawn and timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.compaction.files.modules import TensorInput, read_file, read_files
from sparsemtl.compaction.timing.measure import timings
from sparsemtl.errors import CheckpointError, ParameterError


class Words(nn.Module):
    """Network of numbers of words, (B, positions), and of a vector per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, words: Tensor, x: Tensor) -> Tensor:
        return self.linear(self.table(words).mean(1) + x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    example = torch.tensor([[0, 4, 1]] * 2), torch.randn(2, 4)
    for suffix in ("safetensors", "pt2", "onnx"):
        sm.export(Words(), folder / f"words.{suffix}", example_inputs=example)
    model = sm.SharedBottom(nn.Linear(3, 4), [sm.Regression("a"), sm.Regression("b")])
    networks = {task: sm.compact(model, task=task) for task in model.tasks}
    sm.save_bundle(networks, folder / "both.safetensors", model=model)
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "pt2", "onnx"])
def test_inputs_are_those_that_the_file_takes(suffix: str, folder: Path) -> None:
    (found,) = read_files(folder / f"words.{suffix}").values()
    assert found.describe() == (TensorInput((None, 3), torch.int64), TensorInput((None, 4), torch.float32))
    words, x = found.inputs(6).args
    assert words.shape == (6, 3)
    assert set(words.unique().tolist()) == {0, 1}
    (outputs,) = next(iter([found.network(words, x)])).values() if suffix == "onnx" else [found.network(words, x)]
    assert outputs.shape == (6, 2)


def test_networks_of_a_bundle_are_read_by_task(folder: Path) -> None:
    both = folder / "both.safetensors"
    assert list(read_files(both)) == ["a", "b"]
    found = read_files(both, ("b",))
    assert list(found) == ["b"]
    x = torch.ones(2, 3)
    assert torch.equal(found["b"].network(x), sm.load_network(both, task="b")(x))


def test_files_are_timed_in_turns(folder: Path) -> None:
    files = {**read_files(folder / "words.safetensors"), **read_files(folder / "words.pt2")}
    inputs = next(iter(files.values())).inputs(2)
    networks = {name: file.network for name, file in files.items()}
    ((runtime, times),) = timings(networks, inputs, repeats=1, runtimes=["eager"])
    assert runtime == "eager"
    assert list(times) == ["words.safetensors", "words.pt2"]
    onnx = read_file(folder / "words.onnx")
    ((_, times),) = timings({"onnx": onnx.network}, onnx.inputs(2), repeats=1, runtimes=["onnxruntime"])
    assert times["onnx"].median > 0
    assert sorted(file.name for file in folder.iterdir()) == [
        "both.safetensors",
        *(f"words.{suffix}" for suffix in ("onnx", "pt2", "safetensors")),
    ]


def test_a_fixed_batch_and_axes_of_any_length_are_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    assert TensorInput((1, None), torch.float64).drawn(generator, 16).shape == (1, 64)
    assert TensorInput((), torch.float32).drawn(generator, 16).shape == ()
    drawn = TensorInput((None, 100), torch.bool).drawn(generator, 2)
    assert drawn.dtype == torch.bool
    assert len(drawn.unique()) == 2


def test_files_that_cannot_be_read_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"there is no file .*none\.pt2"):
        read_files(tmp_path / "none.pt2")
    with pytest.raises(ParameterError, match=r"a file of a network is one of \.safetensors, \.pt2, \.onnx"):
        read_files(Path(__file__))
    with pytest.raises(ParameterError, match="unknown task 'c'"):
        read_files(folder / "both.safetensors", ("c",))
    with pytest.raises(ParameterError, match="holds one network and no tasks, got task 'a'"):
        read_files(folder / "words.onnx", ("a",))
    (tmp_path / "damaged.pt2").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"damaged\.pt2 is no archive of torch\.export"):
        read_files(tmp_path / "damaged.pt2")
