"""A network in a file gives the network's outputs, elsewhere and without code; other files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from compaction_toys import alive, zeroed
from torch import Tensor, nn

import sparsemtl as sm
from sparsemtl.architectures import ARCHITECTURES
from sparsemtl.backbones import CNN
from sparsemtl.errors import CheckpointError, CompactionError, CompactionWarning, ParameterError
from sparsemtl.storage.files import read_tensors, write_tensors


class Gated(nn.Module):
    """Two inputs in a dict, two outputs; a buffer, a number of the batch's size, a split."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        hidden = torch.sigmoid(self.left(inputs["a"])) * self.right(inputs["b"])
        one, two = hidden.chunk(2, dim=1)
        return {"one": one + self.shift, "pair": (two / two.shape[0], one.view(-1, 3, 1))}


def images() -> tuple[nn.Module, Any]:
    model = sm.SharedBottom(CNN((2, 8, 8), widths=[4, 6]), [sm.Classification("one", 3), sm.Regression("two")])
    zeroed(alive(model.float()), "encoder", 0.5)
    x = torch.randn(3, 2, 8, 8)
    return sm.compact(model.float(), task="one", example_inputs=x), x


def attention() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 5, 8)


def gated() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return Gated(), ({"a": torch.randn(3, 4), "b": torch.randn(3, 3)},)


def built(architecture: str) -> tuple[nn.Module, Any]:
    """Return a network whose parts compare the sizes of features: of experts, or of streams."""
    torch.manual_seed(0)
    tasks, x = [sm.Regression("one"), sm.Regression("two")], torch.randn(3, 2, 8, 8)
    model = ARCHITECTURES.build(architecture, lambda: CNN((2, 8, 8), widths=[4, 4]), tasks)
    model.eval()(x)
    return sm.compact(model, task="one", example_inputs=x), x


NETWORKS = [
    (images, 0.0),
    *((partial(built, name), 0.0) for name in ("mmoe", "cross-stitch", "nddr")),
    (gated, 0.0),
    (attention, 1e-6),
]
"""Networks, and the difference of their files: torch runs a transformer layer of its own class by a fused kernel."""


@pytest.mark.parametrize(("make", "rounding"), NETWORKS)
@torch.no_grad()
def test_safetensors_hold_the_network(
    make: Callable[[], tuple[nn.Module, Any]], rounding: float, tmp_path: Path
) -> None:
    network, x = make()
    file = sm.export(network, tmp_path / "net.safetensors", example_inputs=x)
    again = sm.load_network(file.path)
    given = x if isinstance(x, tuple) else (x,)
    found, expected = again(*given), network(*given)
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * rounding)
    assert file.batch is None
    assert file.difference is not None
    assert file.difference <= rounding
    assert {n: t.shape for n, t in again.named_parameters()} == {n: t.shape for n, t in network.named_parameters()}


@torch.no_grad()
def test_an_archive_runs_without_sparsemtl(tmp_path: Path) -> None:
    network, x = images()
    sm.export(network, tmp_path / "net.pt2")
    torch.save((x, network(x)), tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules['sparsemtl'] = None\n"
        "import torch; x, y = torch.load('expected.pt')\n"
        "assert torch.equal(torch.export.load('net.pt2').module()(x), y)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_onnx_gives_the_same_and_names_its_tensors(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = images()
    file = sm.export(network, tmp_path / "net.onnx", outputs=["one"])
    assert file.difference is not None
    assert file.difference < 1e-5
    session = onnxruntime.InferenceSession(file.path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["one"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x), atol=1e-5, rtol=1e-4)


def test_other_inputs_than_exported_are_refused(tmp_path: Path) -> None:
    network, _ = images()
    again = sm.load_network(sm.export(network, tmp_path / "net.safetensors").path)
    with pytest.raises(ParameterError, match=r"input x: .* \(any, 2, 8, 8\), got \(1, 2, 9, 9\)"):
        again.forward(torch.zeros(1, 2, 9, 9))
    with pytest.raises(ParameterError, match=r"takes torch.float32, got torch.int64"):
        again.forward(torch.zeros(1, 2, 8, 8, dtype=torch.int64))


def test_an_unknown_format_and_a_network_without_example_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"one of onnx, pt2, safetensors, got 'bin'"):
        sm.export(nn.Linear(2, 2), tmp_path / "net.bin")
    with pytest.raises(ParameterError, match="no example could be made"):
        sm.export(gated()[0], tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """Reads the number of samples as a number of Python's."""

    def forward(self, x: Tensor) -> Tensor:
        return x / len(x)


def test_a_network_for_one_number_of_samples_says_so(tmp_path: Path) -> None:
    with pytest.warns(CompactionWarning, match=r"net.safetensors takes only length 3 on axis 0 of x"):
        file = sm.export(Counting(), tmp_path / "net.safetensors", example_inputs=torch.ones(3, 2))
    assert file.batch == 3
    with pytest.raises(ParameterError, match=r"shape \(3, 2\), got \(4, 2\)"):
        sm.load_network(file.path).forward(torch.ones(4, 2))


class Sequences(nn.Module):
    """Features per step, and an optional mask of the steps that are read; as wide as the example is long or not."""

    def __init__(self, kind: str, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, width)
        if kind == "gru":
            self.steps: nn.Module = nn.GRU(width, 3, batch_first=True)
        else:
            self.steps = nn.TransformerEncoderLayer(width, 2, 6, batch_first=True)
        self.head = nn.Linear(3 if kind == "gru" else width, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.steps(self.words(x) * mask[..., None])
        return self.head(hidden[0] if isinstance(hidden, tuple) else hidden)


STEPS = (torch.arange(18).view(3, 6) % 9, torch.arange(18.0).view(3, 6) / 18)


def test_a_length_that_torch_fixes_is_warned_of_with_the_layers_that_read_it(tmp_path: Path) -> None:
    network = Sequences("gru", width=6).eval()  # six steps of six features
    with pytest.warns(CompactionWarning, match=r"only length 6 on axis 1 of x, mask.*recurrent layers.*'steps'"):
        file = sm.export(network, tmp_path / "net.pt2", example_inputs=STEPS, axes=(0, 1))
    assert file.batch is None
    with pytest.warns(CompactionWarning, match="both.safetensors takes only length 6"):
        sm.save_bundle({"a": network}, tmp_path / "both.safetensors", example_inputs=STEPS, axes=(0, 1))


def test_axes_that_the_network_itself_fixes_are_not_warned_of(tmp_path: Path) -> None:
    network = Sequences("attention").eval()
    again = sm.load_network(sm.export(network, tmp_path / "a.safetensors", example_inputs=STEPS, axes=(0, 1)).path)
    longer = [tensor.repeat(1, 2) for tensor in STEPS]
    torch.testing.assert_close(again(*longer), network(*longer))
    sm.export(Gated(), tmp_path / "b.safetensors", example_inputs=gated()[1], axes=(0, 1))  # numbers of features


def test_axes_that_no_input_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"no input has an axis 2; inputs have the shapes \(2, 3\)"):
        sm.export(nn.Linear(3, 2), tmp_path / "net.pt2", example_inputs=torch.ones(2, 3), axes=(0, 2))
    for axes in (1, (0, -1), ("batch",)):
        with pytest.raises(ParameterError, match="numbers of axes from 0 on"):
            sm.export(nn.Linear(3, 2), tmp_path / "net.pt2", axes=axes)  # type: ignore[arg-type]


class Asking(nn.Module):
    """Takes a way that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_torch_cannot_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompactionError, match=r"Asking cannot be exported: torch.export says"):
        sm.export(Asking(), tmp_path / "net.pt2", example_inputs=torch.ones(2, 3))
    assert not list(tmp_path.iterdir())


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the file again with other content, as a forger would, with a right checksum."""
    tensors, header = read_tensors(path)
    content = json.loads(header["network"])
    change(content)
    write_tensors(path, tensors, {**header, "network": json.dumps(content)})


class PerSample(nn.Module):
    """Network that scales a sample that comes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if len(x) != 1 else 2 * x)


@pytest.mark.parametrize("suffix", ["onnx", "pt2", "safetensors"])
def test_batches_that_the_network_refuses_are_not_compared_and_named(tmp_path: Path, suffix: str) -> None:
    x = torch.randn(2, 3)
    small = sm.compact(PerSample(), example_inputs=x)
    with pytest.raises(ParameterError, match="other sizes"):
        small(x[:1])
    with pytest.warns(CompactionWarning, match=f"small.{suffix}: outputs for batches of 1 were not compared"):
        file = sm.export(small, tmp_path / f"small.{suffix}", example_inputs=x)
    assert file.batch is None
    assert file.difference is not None
    assert file.difference < 1e-6


class Pair(NamedTuple):
    """Outputs of a class of a user's own."""

    one: Tensor
    two: Tensor


class Listed(nn.Module):
    """Network whose outputs are in a list, or in a tuple of a class of its own."""

    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 4), kind

    def forward(self, x: Tensor) -> Any:
        hidden = self.layer(x)
        return self.kind(hidden, hidden.mean(-1))


def test_a_list_of_outputs_stays_one_in_a_file(tmp_path: Path) -> None:
    small, x = (
        sm.compact(Listed(lambda *parts: {"both": [*parts]}), example_inputs=torch.randn(2, 3)),
        torch.randn(5, 3),
    )
    found = sm.load_network(sm.export(small, tmp_path / "list.safetensors").path)(x)
    assert type(found["both"]) is list
    assert all(map(torch.equal, found["both"], small(x)["both"]))


def test_a_format_that_cannot_hold_a_network_says_so_and_names_the_file(tmp_path: Path) -> None:
    named = sm.compact(Listed(Pair), example_inputs=torch.randn(2, 3))
    half = sm.compact(nn.Conv2d(3, 2, 1).bfloat16(), example_inputs=torch.randn(2, 3, 4, 4).bfloat16())
    complicated = nn.Linear(3, 2, dtype=torch.cfloat)
    for network, suffix, reason in [
        (named, "safetensors", "the network takes or returns a Pair"),
        (named, "pt2", "an archive of torch.export cannot hold the network: .*Pair"),
        (half, "onnx", "onnxruntime cannot run the network on a CPU: .*bfloat16"),
        (complicated, "onnx", "ONNX cannot hold the network: "),
    ]:
        path = tmp_path / f"network.{suffix}"
        example = torch.randn(2, 3, dtype=torch.cfloat) if network is complicated else None
        with pytest.raises(CompactionError, match=f"^{path} was not written: {reason}"):
            sm.export(network, path, example_inputs=example)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["os.system", "operator.attrgetter", "aten.from_file.default", "aten.save.default", "prim.device", "torch.load"],
)
def test_a_file_that_calls_something_else_is_refused(name: str, tmp_path: Path) -> None:
    path = sm.export(nn.Linear(3, 2), tmp_path / "net.safetensors").path
    changed(path, lambda content: content["nodes"][0].update(calls=name))
    with pytest.raises(CheckpointError, match=f"it calls '{name}'"):
        sm.load_network(path)


def test_every_damaged_description_is_refused_in_our_words(tmp_path: Path) -> None:
    path = sm.export(gated()[0], tmp_path / "net.safetensors", example_inputs=gated()[1]).path
    whole = path.read_bytes()
    tensors, header = read_tensors(path)
    content = json.loads(header["network"])
    for key in content:
        changed(path, lambda content, key=key: content.update({key: None}))  # type: ignore[misc]
        with pytest.raises(CheckpointError):
            sm.load_network(path)
        path.write_bytes(whole)
    write_tensors(path, tensors, {**header, "version": "2"})
    with pytest.raises(CheckpointError, match="version 2 of the format"):
        sm.load_network(path)
    write_tensors(path, tensors, {})
    with pytest.raises(CheckpointError, match="holds no network"):
        sm.load_network(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        sm.load_network(path)


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    sm.export(nn.Linear(3, 2), path)
    before = path.read_bytes()
    with pytest.raises(CompactionError):
        sm.export(Asking(), path, example_inputs=torch.ones(2, 3))
    assert path.read_bytes() == before
