"""Linear layers without their zeros: weights in compressed sparse rows (CSR), where torch is faster with them."""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor, nn

from sparsemtl.compaction.inputs import Inputs

_PASSES = 5
"""Passes of a layer by which its two forms are compared."""


class SparseLinear(nn.Module):
    """Linear layer whose weight is stored and multiplied without its zeros.

    Args:
        layer: the layer.

    Attributes:
        values: (entries,), the weights other than zero, row by row.
        rows: (outputs + 1,), where each row begins among the entries.
        columns: (entries,), input of each entry.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that its CSR tensors are in beta
            weight = layer.weight.detach().to_sparse_csr()
        self.values = nn.Parameter(weight.values(), requires_grad=layer.weight.requires_grad)
        self.register_buffer("rows", weight.crow_indices())
        self.register_buffer("columns", weight.col_indices())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        size = self.out_features, self.in_features
        weight = torch.sparse_csr_tensor(self.rows, self.columns, self.values, size, check_invariants=False)
        product: Tensor = (weight @ x.reshape(-1, self.in_features).t()).t().reshape(*x.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        kept = len(self.values) / (self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, kept={kept:.2f}"


def sparsify(network: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """Replace the linear layers of a network that are faster in CSR on these inputs.

    Each layer with a zero in more than half of its weights is timed in both forms on what it reads in a pass.

    Args:
        network: the network, which is changed.
        inputs: what it reads.

    Returns:
        number of layers that were replaced, and of those that were timed.
    """
    read: dict[nn.Module, Tensor] = {}
    layers = {name: m for name, m in network.named_modules() if type(m) is nn.Linear and _is_sparse(m.weight)}
    hooks = [m.register_forward_pre_hook(lambda own, args: read.setdefault(own, args[0])) for m in layers.values()]
    replaced = 0
    with torch.no_grad():
        inputs.call(network)
        for hook in hooks:
            hook.remove()
        timed = {name: layer for name, layer in layers.items() if layer in read}
        for name, layer in timed.items():
            other = SparseLinear(layer)
            if milliseconds(other, read[layer]) < milliseconds(layer, read[layer]):
                network.set_submodule(name, other)
                replaced += 1
    return replaced, len(timed)


def _is_sparse(weight: Tensor) -> bool:
    return 0 < int(weight.count_nonzero()) < weight.numel() / 2


def milliseconds(layer: nn.Module, x: Tensor) -> float:
    """Return the least of some times of a layer."""
    times = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        layer(x)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)
