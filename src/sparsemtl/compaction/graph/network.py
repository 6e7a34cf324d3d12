"""Network while it is compacted: a graph, its modules and tensors, and the layers that compaction adds."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class WeightCut:
    """Part of a weight that compaction left to a layer.

    Attributes:
        source: name of the model's tensor that it is a part of; "" for the tensor of its own name.
        part: (chunks, axis, index) of the chunk of that tensor; None for the whole.
        factor: (outputs,), factors of folded norms; None without.
        axis: axis of the weight with the outputs.
        entries: indices that are left of the first and of the second axis; None for all.
    """

    source: str = ""
    part: tuple[int, int, int] | None = None
    factor: Tensor | None = None
    axis: int = 0
    entries: tuple[Tensor | None, Tensor | None] = (None, None)


@dataclass
class Network:
    """Traced network.

    Attributes:
        graph: graph of the computation; its nodes refer to modules and tensors by name.
        modules: modules that the graph calls, by name.
        tensors: parameters and buffers that the graph itself reads, by name.
        name: name of the class that was traced.
        leaf_modules: names of modules that stay as they are.
        cuts: name of a layer -> what its weight is cut from, where it is not the whole weight of the same name.
        sizes: (node, axis) -> where the size comes from; None outside of `known_sizes`.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, Any]
    name: str
    leaf_modules: frozenset[str] = frozenset()
    cuts: dict[str, WeightCut] = field(default_factory=dict)
    sizes: dict[tuple[fx.Node, int], Any] | None = None

    @classmethod
    def of(cls, root: nn.Module, graph: fx.Graph, *, prefix: str, name: str, leaf_modules: Collection[str]) -> Network:
        """Return the network of a graph, with the modules and tensors that it names, whose names lose the prefix."""
        modules: dict[str, nn.Module] = {}
        tensors: dict[str, Any] = {}
        for node in graph.nodes:
            found = {"call_module": modules, "get_attr": tensors}.get(node.op)
            if found is not None:
                value = operator.attrgetter(node.target)(root)
                node.target = node.target.removeprefix(prefix)
                found[node.target] = value
        return cls(graph, modules, tensors, name, frozenset(leaf_modules))

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, None if it calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def tensor(self, value: object) -> Tensor | None:
        """Return the tensor that a node reads from the network; None for any other node or value."""
        found = self.tensors[str(value.target)] if isinstance(value, fx.Node) and value.op == "get_attr" else None
        return found if isinstance(found, Tensor) else None

    def free(self) -> set[nn.Module]:
        """Return the modules that may be changed: one node calls them and reads their tensors, which are real."""
        uses = Counter(map(id, self._reads()))
        return {
            module
            for name, module in self.modules.items()
            if name not in self.leaf_modules
            and not (module._forward_hooks or module._forward_pre_hooks)
            and all(uses[id(each)] == 1 for each in _held(module))
            and not any(tensor.is_complex() for tensor in module.parameters())
        }

    def _reads(self) -> Iterator[object]:
        """Yield every module, parameter and buffer once per node that reads it."""
        for node in self.graph.nodes:
            module, tensor = self.module(node), self.tensor(node)
            if module is not None:
                yield from _held(module)
            elif tensor is not None:
                yield tensor


def _held(module: nn.Module) -> Iterator[object]:
    """Yield a module, its parameters and its buffers."""
    yield module
    yield from module.parameters()
    yield from module.buffers()


class Constant(nn.Module):
    """Layer whose output is the same at all positions.

    Args:
        bias: (outputs,), the output; a buffer unless it is a parameter.
    """

    bias: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        if isinstance(bias, nn.Parameter):
            self.bias = bias
        else:
            self.register_buffer("bias", bias)
        self.in_features, self.out_features = 0, len(bias)

    def forward(self, *sizes: int) -> Tensor:
        """Return a tensor (*sizes, outputs)."""
        return self.bias.expand(*sizes, -1)

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        return f"outputs={len(self.bias)}"


class Select(nn.Module):
    """Layer that copies entries of one axis; with constants, of the axis and constant entries behind it.

    Args:
        index: entries to copy, int64; from the length of the axis on they are constants.
        axis: axis of the input; 1 if there are constants.
        constants: (count,), values that are the same at all positions.
    """

    index: Tensor
    constants: Tensor | None

    def __init__(self, index: Tensor, axis: int, constants: Tensor | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index)
        self.register_buffer("constants", constants)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., entries, ...) to (..., len(index), ...)."""
        if self.constants is not None:
            values = self.constants.view(1, -1, *[1] * (x.ndim - 2))
            x = torch.cat([x, values.expand(x.shape[0], -1, *x.shape[2:])], dim=1)
        return torch.index_select(x, self.axis, self.index)

    def extra_repr(self) -> str:
        """Return the text that `print` shows."""
        constants = 0 if self.constants is None else len(self.constants)
        return f"entries={len(self.index)}, axis={self.axis}, constants={constants}"
