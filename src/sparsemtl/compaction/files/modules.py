"""Networks in files (safetensors, archives of torch.export, ONNX) as modules, with the inputs that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.files.graph_file import fixed, tensor_inputs
from sparsemtl.compaction.files.loading import read_network, tasks_of
from sparsemtl.compaction.inputs import Inputs, Like, tensors
from sparsemtl.errors import CheckpointError, ParameterError, missing_extra, unknown_name

_LENGTH = 64
"""Entries of an axis of any length, such as the positions of a sequence, in inputs that are drawn."""
_ONNX_TYPES = {
    "tensor(bool)": torch.bool,
    "tensor(double)": torch.float64,
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
}


@dataclass(frozen=True)
class TensorInput:
    """Input of a network in a file.

    Attributes:
        shape: length of every axis, None for any.
        dtype: type of the numbers.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def drawn(self, generator: torch.Generator, samples: int) -> Tensor:
        """Return random numbers, standard normal or 0 and 1, with a number of samples where it may be any."""
        first, *others = self.shape or (1,)
        shape = (first or samples, *(_LENGTH if size is None else size for size in others))[: len(self.shape)]
        whole = not self.dtype.is_floating_point
        return Like(shape, self.dtype, 0.0, 1.0 if whole else 0.0).drawn(generator)


@dataclass(frozen=True)
class NetworkFile:
    """Network that was read from a file.

    Attributes:
        path: the file.
        network: module that runs it.
        describe: returns its inputs, in order.
    """

    path: Path
    network: nn.Module
    describe: Callable[[], tuple[TensorInput, ...]]

    def inputs(self, samples: int) -> Inputs:
        """Return random inputs of this number of samples, or of the only number that the file takes.

        Raises:
            ParameterError: if an input is no tensor.
        """
        generator = torch.Generator().manual_seed(0)
        return Inputs(tuple(each.drawn(generator, samples) for each in self.describe()))


def read_file(path: str | Path, task: str | None = None, *, name: str = "path") -> NetworkFile:
    """Read a network from a file.

    Args:
        path: a file with one of the suffixes .safetensors, .pt2 and .onnx.
        task: of a bundle, the task whose network to read.
        name: name of the argument in errors.

    Raises:
        CheckpointError: if the file is damaged.
        MissingExtraError: for an ONNX file, if onnxruntime is not installed.
        ParameterError: if there is no such file, or its suffix is another one.
    """
    path = Path(path)
    if not path.is_file():
        raise ParameterError(f"`{name}`: there is no file {path}.")
    if path.suffix not in _READERS:
        raise ParameterError(f"`{name}`: a file of a network is one of {', '.join(_READERS)}, got {path.name}.")
    return _READERS[path.suffix](path, task)


def read_files(path: str | Path, tasks: tuple[str, ...] = ()) -> dict[str, NetworkFile]:
    """Read the networks of a file: task -> network of a bundle, name of the file -> network of any other file.

    Args:
        path: the file.
        tasks: tasks of a bundle to read, all by default.

    Raises:
        ParameterError: if a task is not one of the bundle's; otherwise as `read_file`.
    """
    path = Path(path)
    known = tasks_of(path) if path.suffix == ".safetensors" and path.is_file() else ()
    for task in tasks:
        if not known:
            raise ParameterError(f"{path} holds one network and no tasks, got task {task!r}. Leave the task out.")
        if task not in known:
            raise ParameterError(f"{path}: {unknown_name('task', task, known)}")
    if not known:
        return {path.name: read_file(path)}
    return {task: read_file(path, task) for task in tasks or known}


def _read_safetensors(path: Path, task: str | None) -> NetworkFile:
    network = read_network(path, task)

    def describe() -> tuple[TensorInput, ...]:
        found = tensor_inputs(network)
        if found is None:
            raise ParameterError(
                f"{path} takes dicts, lists or constants. Time it in Python: `sm.latency(sm.load_network(path), x)`."
            )
        return tuple(TensorInput(*each) for each in found)

    return NetworkFile(path, network, describe)


def _read_archive(path: Path, _: str | None) -> NetworkFile:
    try:
        program = torch.export.load(path)
        network = program.module()
    except Exception as error:
        raise CheckpointError(f"{path} is no archive of torch.export: {error}") from error

    def describe() -> tuple[TensorInput, ...]:
        nodes: dict[str, fx.Node] = {node.name: node for node in program.graph.nodes}
        values = [nodes[str(name)].meta.get("val") for name in program.graph_signature.user_inputs]
        tensors = [value for value in values if isinstance(value, Tensor)]
        if len(tensors) < len(values):
            raise ParameterError(f"{path} takes inputs that are no tensors. Time it in Python.")
        return tuple(TensorInput(tuple(fixed(size) for size in value.shape), value.dtype) for value in tensors)

    return NetworkFile(path, network, describe)


class OnnxFile(nn.Module):
    """ONNX file that onnxruntime runs on the CPU.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        try:
            import onnxruntime
        except ImportError:
            raise missing_extra("onnxruntime", "onnx", "running ONNX files") from None
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CheckpointError(f"{path} is no network that onnxruntime runs: {error}") from error

    def __deepcopy__(self, memo: dict[int, object]) -> OnnxFile:
        return self

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return name -> output; arguments are taken by name, the others in order."""
        names = [each.name for each in self.session.get_inputs()]
        named = {name: kwargs[name] for name in names if name in kwargs}
        others = tensors((args, {name: value for name, value in kwargs.items() if name not in named}))
        fed = {**named, **dict(zip([name for name in names if name not in named], others, strict=True))}
        outputs = self.session.run(None, {name: value.detach().cpu().numpy() for name, value in fed.items()})
        return {
            each.name: torch.from_numpy(output)
            for each, output in zip(self.session.get_outputs(), outputs, strict=True)
        }


def _read_onnx(path: Path, _: str | None) -> NetworkFile:
    network = OnnxFile(path)

    def describe() -> tuple[TensorInput, ...]:
        found = []
        for each in network.session.get_inputs():
            if each.type not in _ONNX_TYPES:
                raise ParameterError(f"{path}: input {each.name!r} is a {each.type}, which cannot be drawn at random.")
            shape = tuple(size if isinstance(size, int) else None for size in each.shape)
            found.append(TensorInput(shape, _ONNX_TYPES[each.type]))
        return tuple(found)

    return NetworkFile(path, network, describe)


_READERS: dict[str, Callable[[Path, str | None], NetworkFile]] = {
    ".safetensors": _read_safetensors,
    ".pt2": _read_archive,
    ".onnx": _read_onnx,
}
"""Suffix of a file -> function of the file and the task that reads its network."""
