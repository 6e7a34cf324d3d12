"""Runtimes in which networks are timed: torch as it is and compiled, onnxruntime, and both in less precision."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemtl.compaction.copies import copied
from sparsemtl.compaction.exporting import export, quietly
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.errors import CompactionError, missing_extra

_PASSES = 5
"""Passes of a layer by which its two forms are compared."""

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
    if not sum([_sparsify(network, inputs) for network in made.values()]):
        raise CompactionError(
            "products without the zeros are faster in no linear layer on this batch; on a CPU, layers gain that keep "
            "less than about a tenth of their weights"
        )
    return eager(made, inputs)


class _SparseLinear(nn.Module):
    """Linear layer whose weight is in CSR."""

    weight: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR tensors beta
            self.register_buffer("weight", layer.weight.detach().to_sparse_csr())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the transposed weight, plus the bias."""
        product: Tensor = (self.weight @ x.flatten(0, -2).t()).t().unflatten(0, x.shape[:-1])
        return product if self.bias is None else product + self.bias


def _sparsify(network: nn.Module, inputs: Inputs) -> int:
    """Replace the linear layers that are faster in CSR, and return their number."""
    read: dict[nn.Module, Tensor] = {}
    layers = {name: m for name, m in network.named_modules() if type(m) is nn.Linear and m.weight.count_nonzero() > 0}
    hooks = [m.register_forward_pre_hook(lambda own, args: read.setdefault(own, args[0])) for m in layers.values()]
    replaced = 0
    with torch.no_grad():
        inputs.call(network)
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            if layer in read and layer.weight.count_nonzero() < layer.weight.numel() / 2:
                other = _SparseLinear(layer)
                if _milliseconds(other, read[layer]) < _milliseconds(layer, read[layer]):
                    network.set_submodule(name, other)
                    replaced += 1
    return replaced


def _milliseconds(layer: nn.Module, x: Tensor) -> float:
    """Return the least of some times of a layer."""
    times = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        layer(x)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


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
            content = read(export(network, Path(name) / f"{kind}.onnx", example_inputs=inputs).path)
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
