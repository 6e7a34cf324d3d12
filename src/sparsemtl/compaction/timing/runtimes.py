"""Runtimes in which networks are timed: torch as it is and compiled, onnxruntime, and both in less precision."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.files.exporting import export, quietly
from sparsemtl.compaction.files.modules import OnnxFile
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.timing.sparse_layers import sparsify
from sparsemtl.errors import CompactionError, missing_extra

Networks = Mapping[str, nn.Module]
"""Kind (`before`, `after`) -> network in eval mode."""
Runs = dict[tuple[str, str], Callable[[], Any]]
"""(kind, layout) -> function that runs a network on the batch, and returns its outputs."""


def eager(networks: Networks, inputs: Inputs) -> Runs:
    """Return the passes in torch, with images in the contiguous and in the channels-last layout."""
    runs = {(kind, ""): _call(run, inputs) for kind, run in networks.items()}
    if all(tensor.ndim == 4 for tensor in inputs.tensors()):
        pixels = inputs.mapped(lambda tensor: tensor.to(memory_format=torch.channels_last))
        runs |= {(kind, "channels last"): _call(_channels_last(run), pixels) for kind, run in networks.items()}
    return runs


def compiled(networks: Networks, inputs: Inputs) -> Runs:
    """Return the passes of `torch.compile`, which chooses layouts itself.

    Raises:
        CompactionError: if a network cannot be compiled, for example without a C++ compiler.
    """
    runs = {(kind, ""): _call(torch.compile(run, dynamic=False), inputs) for kind, run in networks.items()}
    try:
        with torch.inference_mode():
            for run in runs.values():
                run()
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CompactionError(f"torch.compile cannot compile the network: {line}") from error
    return runs


def half(networks: Networks, inputs: Inputs) -> Runs:
    """Return the passes in torch in half precision: float16 on a GPU, bfloat16 on a CPU."""
    device = _device(networks)
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    narrow = {kind: copied(network).to(dtype) for kind, network in networks.items()}
    return eager(narrow, inputs.to(dtype=dtype, device=device))


def sparse(networks: Networks, inputs: Inputs) -> Runs:
    """Return the passes in torch with the weights of linear layers in CSR, where that is faster on these inputs.

    Raises:
        CompactionError: if it is faster in no layer of any network.
    """
    made = {kind: copied(network) for kind, network in networks.items()}
    if not sum([sparsify(network, inputs)[0] for network in made.values()]):
        raise CompactionError(
            "products without the zeros are faster in no linear layer on this batch; on a CPU, layers gain that keep "
            "less than about a tenth of their weights"
        )
    return eager(made, inputs)


def in_onnxruntime(networks: Networks, inputs: Inputs) -> Runs:
    """Return the passes in onnxruntime, on the GPU if the networks are there and onnxruntime has a provider for it.

    Raises:
        MissingExtraError: if a library is missing.
        CompactionError: if a network cannot be exported.
    """
    return _sessions(networks, inputs, lambda path: path.read_bytes())


def int8(networks: Networks, inputs: Inputs) -> Runs:
    """Return the passes in onnxruntime with 8-bit weights, and activations that are quantized in every pass.

    Raises:
        MissingExtraError: if a library is missing.
        CompactionError: if a network cannot be exported.
    """

    def quantized(path: Path) -> bytes:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        small = path.with_suffix(".int8.onnx")
        with quietly():
            quantize_dynamic(path, small, weight_type=QuantType.QUInt8)  # its convolutions take no signed weights
        return small.read_bytes()

    return _sessions(networks, inputs, quantized)


def _sessions(networks: Networks, inputs: Inputs, read: Callable[[Path], bytes]) -> Runs:
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnxruntime", "onnx", "timing networks in onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow the network in its turn
    on_gpu = _device(networks).type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = [*(["CUDAExecutionProvider"] if on_gpu else []), "CPUExecutionProvider"]
    fed = [tensor.cpu().numpy() for tensor in inputs.tensors()]
    runs: Runs = {}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, network in networks.items():
            path = Path(name) / f"{kind}.onnx"
            if isinstance(network, OnnxFile):
                shutil.copyfile(network.path, path)
            else:
                export(network, path, example_inputs=inputs)
            content = read(path)
            session = onnxruntime.InferenceSession(content, options, providers=providers)
            feed = {each.name: value for each, value in zip(session.get_inputs(), fed, strict=True)}
            runs[kind, ""] = partial(session.run, None, feed)
    return runs


def _call(network: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
    return partial(network, *inputs.args, **inputs.kwargs)


def _channels_last(network: nn.Module) -> nn.Module:
    return copied(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _device(networks: Networks) -> torch.device:
    owned = (p for network in networks.values() for p in network.parameters())
    return next((p.device for p in owned), torch.device("cpu"))


RUNTIMES: dict[str, Callable[[Networks, Inputs], Runs]] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": in_onnxruntime,
    "half": half,
    "int8": int8,
    "sparse": sparse,
}
"""Name of a runtime -> function that makes its passes."""
