"""Export of a network to a file that is run elsewhere: ONNX, torch.export's archive, safetensors."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.files.fixed_axes import is_dynamic, warn_of_fixed_axes
from sparsemtl.compaction.files.graph_file import write_network
from sparsemtl.compaction.files.loading import load_network
from sparsemtl.compaction.inference import inferred
from sparsemtl.compaction.inputs import Inputs, mapped, random_like, tensors
from sparsemtl.compaction.report import CompactionReport
from sparsemtl.compaction.timing.sparse_layers import SparseLinear
from sparsemtl.compaction.verification.comparison import difference
from sparsemtl.errors import CompactionError, CompactionWarning, ParameterError, missing_extra
from sparsemtl.networks.modes import eval_mode
from sparsemtl.storage.text_files import replacing

_LIMIT = 1e-3
"""Largest difference of the outputs of a file, as a fraction of their spread."""
_SAMPLES = 2
"""Samples of the batch that is exported: torch.export takes an axis of length 1 for fixed."""


@dataclass(frozen=True)
class Exported:
    """File with a network.

    Attributes:
        path: the file.
        format: `onnx`, `pt2` or `safetensors`.
        bytes: size of the file.
        difference: largest difference of its outputs from the network's, as a fraction of their spread; None if the
            library that runs such files is not installed.
        batch: number of samples that it takes; None for any.
    """

    path: Path
    format: str
    bytes: int
    difference: float | None
    batch: int | None


def export(
    network: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    example_inputs: Any = None,
    axes: Collection[int] = (0,),
    outputs: Collection[str] | None = None,
) -> Exported:
    """Write a network to a file that runs without sparsemtl or without Python, and compare the outputs of the file.

    - `onnx`: for onnxruntime, TensorRT, OpenVINO and others. Needs `pip install 'sparsemtl[onnx]'`.
    - `pt2`: archive of `torch.export`, for `torch.export.load` and AOTInductor; sparsemtl is not needed to load it.
    - `safetensors`: weights and graph without code, for `sm.load_network`; safe to load from strangers.

    Args:
        network: a compacted network, or any module that `torch.export` can export. It is not changed.
        path: the file; an old one is replaced once the new one is complete.
        format: format of the file, by default that of the suffix of `path`.
        example_inputs: a batch that the network reads, as for `sm.compact`; by default random inputs like those that it
            was compacted with.
        axes: axes of the inputs whose length may differ from the example's where the network allows it: 0 is the batch;
            (0, 1) is also the length of sequences. A `CompactionWarning` names an axis that torch.export fixes
            although the network takes other lengths.
        outputs: names of the outputs in an ONNX file; by default the keys of a dict, or `output`.

    Raises:
        ParameterError: if the format is unknown, or the network does not run on the example.
        CompactionError: if the network cannot be exported, or the file gives other outputs.
        MissingExtraError: if a library is missing.

    Examples:
        >>> small = sm.compact(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> file = sm.export(small, "small.pt2")
        >>> file.format, file.batch, file.difference < 1e-6
        ('pt2', None, True)
    """
    path = Path(path)
    kind = format or path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ParameterError(
            f"{path.name}: the format of an export is one of {', '.join(FORMATS)}, got {kind!r}. Use one of these "
            "suffixes, or say format=..."
        )
    own = copied(network).to("cpu").eval()
    inputs = example_of(own, example_inputs)
    with eval_mode(own), torch.no_grad():
        program = program_of(own, inputs, axes)
        with replacing(path) as aside:
            try:
                run = FORMATS[kind](program, aside, _Call(own, inputs, tuple(outputs or ())))
            except CompactionError as error:
                raise CompactionError(f"{path} was not written: {error}") from error
            found, others = (None, True) if run is None else compared(own, run, inputs, path)
        warn_of_fixed_axes(program, own, inputs, axes, path)
    batch = None if others and is_dynamic(program) else inputs.samples()
    return Exported(path, kind, path.stat().st_size, found, batch)


@dataclass(frozen=True)
class _Call:
    """A network, an example of its inputs, and the names of its outputs."""

    network: nn.Module
    inputs: Inputs
    outputs: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the arguments."""
        return list(self.inputs.named(self.network))


Run = Callable[[Inputs], Any]
"""Runs a file on inputs, and returns its outputs."""


def example_of(network: nn.Module, example: Any) -> Inputs:
    """Return inputs of at least two samples that a network runs on."""
    known = getattr(network, "report", None)
    if example is not None:
        inputs = Inputs.of(example, network, single=False)
    elif isinstance(known, CompactionReport) and known.example is not None:
        generator = torch.Generator().manual_seed(0)
        inputs = known.example.mapped(lambda like: like.drawn(generator))
    else:
        found, reason = inferred(network)
        if found is None:
            raise ParameterError(
                f"{type(network).__name__}: no example could be made, since {reason}. Give a batch that it reads "
                "(`example_inputs=...`)."
            )
        inputs = found
    like = next((p for p in network.parameters() if p.is_floating_point()), None)
    inputs = inputs.to(dtype=None if like is None else like.dtype, device=torch.device("cpu"))
    samples = inputs.samples()
    return random_like(inputs, 0, samples=_SAMPLES) if samples is not None and samples < _SAMPLES else inputs


def program_of(network: nn.Module, inputs: Inputs, axes: Collection[int]) -> torch.export.ExportedProgram:
    """Return a network as `torch.export` records it, of the example's size alone if it is right for that size only."""

    if any(isinstance(module, SparseLinear) for module in network.modules()):
        raise CompactionError(
            f"{type(network).__name__} cannot be exported: it has linear layers in CSR, which run in torch alone. "
            "Compact it without multiple_of='sparse', or write it with torch.save."
        )

    _check_axes(axes, inputs)

    def sizes(tensor: Tensor) -> dict[int, Any]:
        return {axis: torch.export.Dim.AUTO for axis in axes if axis < tensor.ndim}

    named = inputs.named(network)
    shapes = mapped(lambda leaf: sizes(leaf) if isinstance(leaf, Tensor) else None, named)
    try:
        with quietly():
            return torch.export.export(network, inputs.args, dict(inputs.kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise CompactionError(
            f"{type(network).__name__} cannot be exported: torch.export says: {_first_line(error)}"
        ) from error


def _check_axes(axes: Collection[int], inputs: Inputs) -> None:
    """Raise a ParameterError unless `axes` names axes of the inputs."""
    ranks = [tensor.ndim for tensor in inputs.tensors()]
    if not isinstance(axes, Collection) or any(not isinstance(each, int) or each < 0 for each in axes):
        raise ParameterError(f"`axes` must be numbers of axes from 0 on, such as (0, 1), got {axes!r}.")
    if missing := [axis for axis in axes if axis and axis >= max(ranks, default=0)]:
        raise ParameterError(f"`axes`: no input has an axis {missing[0]}; inputs have the shapes {inputs.shapes()}.")


def compared(network: nn.Module, run: Run, inputs: Inputs, path: Path) -> tuple[float, bool]:
    """Return the largest difference of a file's outputs, and whether it takes other batches than the example's."""
    error, others = difference(inputs.call(network), run(inputs)), True
    for samples in (1, 5):
        other = random_like(inputs, samples, samples=samples)
        if other.samples() != samples:
            break
        try:
            expected = other.call(network)
        except ParameterError as refusal:  # a network that was compacted for other sizes
            warnings.warn(
                f"{path.name}: outputs for batches of {samples} were not compared, since the network refuses them: "
                f"{refusal}",
                CompactionWarning,
                stacklevel=3,
            )
            continue
        try:
            found = run(other)
        except Exception:
            others = False
            continue
        error = max(error, difference(expected, found))
    if not error <= _LIMIT:
        raise CompactionError(
            f"{path} was not written: its outputs would differ from the network's by {error:.2g} of their spread."
        )
    return error, others


def _pt2(program: torch.export.ExportedProgram, path: Path, call: _Call) -> Run:
    archive = path.with_name(f"{path.name}.pt2")  # torch.export asks for this suffix
    try:
        torch.export.save(program, archive)
        module = torch.export.load(archive).module()  # it warns of other suffixes
        os.replace(archive, path)
    except NotImplementedError as error:  # outputs of a class that torch cannot write
        raise CompactionError(f"an archive of torch.export cannot hold the network: {_first_line(error)}") from error
    finally:
        archive.unlink(missing_ok=True)
    return lambda inputs: module(*inputs.args, **inputs.kwargs)


def _safetensors(program: torch.export.ExportedProgram, path: Path, call: _Call) -> Run:
    write_network(path, program, call.names)
    module = load_network(path)
    return lambda inputs: inputs.call(module)


def _onnx(program: torch.export.ExportedProgram, path: Path, call: _Call) -> Run | None:
    content = _onnx_bytes(program, call)
    path.write_bytes(content)
    try:
        import onnxruntime
    except ImportError:
        warnings.warn(
            f"{path.name} was not run: onnxruntime is not installed. pip install 'sparsemtl[onnx]'",
            CompactionWarning,
            stacklevel=4,
        )
        return None
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class per kind, and no base of them
        raise CompactionError(
            f"onnxruntime cannot run the network on a CPU: {_first_line(error)}. Export a network in half precision as "
            "`network.float()`."
        ) from error

    def run(inputs: Inputs) -> Any:
        given = [tensor.numpy() for tensor in inputs.tensors()]
        fed = {each.name: value for each, value in zip(session.get_inputs(), given, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, fed)]

    return run


def _onnx_bytes(program: torch.export.ExportedProgram, call: _Call) -> bytes:
    for library in ("onnx", "onnxscript"):
        if find_spec(library) is None:
            raise missing_extra(library, "onnx", "writing ONNX files")
    names = _output_names(call)
    with quietly():
        try:
            found = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=_input_names(call),
                output_names=names,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise CompactionError(f"ONNX cannot hold the network: {_cause(error)}") from error
    assert found is not None  # it is None only where the old exporter writes a file
    content: bytes = found.model_proto.SerializeToString()
    return content


@contextmanager
def quietly() -> Iterator[None]:
    """Hide the exporter's warnings about libraries that no network of ours needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _cause(error: BaseException) -> str:
    """Return the first line of the error that another one goes back to: torch's exporter names its own steps."""
    return _first_line(error) if error.__cause__ is None else _cause(error.__cause__)


def _input_names(call: _Call) -> list[str] | None:
    """Return the arguments' names if each is a tensor."""
    named = call.inputs.named(call.network)
    return list(named) if all(isinstance(value, Tensor) for value in named.values()) else None


def _output_names(call: _Call) -> list[str] | None:
    outputs = call.inputs.call(call.network)
    count = len(tensors(outputs))
    if call.outputs:
        if len(call.outputs) != count:
            raise ParameterError(f"`outputs` has {len(call.outputs)} names, and the network has {count} outputs.")
        return list(call.outputs)
    if isinstance(outputs, dict) and len(outputs) == count:
        return list(outputs)
    return ["output"] if count == 1 else None


FORMATS: dict[str, Callable[[torch.export.ExportedProgram, Path, _Call], Run | None]] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "safetensors": _safetensors,
}
"""Format -> function that writes a file of it and returns what runs the file."""
