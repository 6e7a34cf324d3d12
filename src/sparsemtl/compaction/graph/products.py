"""Products with a matrix of the network's own, such as `x @ self.weight + self.bias`, as linear layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.network import Network, WeightCut
from sparsemtl.compaction.graph.operations import argument, operand, operation
from sparsemtl.compaction.graph.sizes import axes_order
from sparsemtl.compaction.rules.parameter import is_read_once


def open_products(network: Network) -> None:
    """Replace `x @ weight`, `torch.addmm` and their like by linear layers, which take a bias that is added behind."""
    for node in list(network.graph.nodes):
        found = _factors(node)
        weight = None if found is None else _Matrix.of(found[1], network)
        if found is not None and weight is not None:
            source, _, bias = found
            if bias is None or _is_bias(bias, weight.tensor, network):
                _write_layer(network, node, source, weight, bias)


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """Return the tensor, the matrix and the bias of a product, None for any other node."""
    bias = None
    if operation(node) in ("matmul", "mm"):
        source, matrix = operand(node), argument(node, 1, "mat2" if operation(node) == "mm" else "other", None)
    elif operation(node) == "addmm" and argument(node, 3, "beta", 1) == argument(node, 4, "alpha", 1) == 1:
        source, matrix, bias = argument(node, 1, "mat1", None), argument(node, 2, "mat2", None), operand(node)
        if bias is None:
            return None
    else:
        return None
    return (source, matrix, bias) if isinstance(source, fx.Node) and isinstance(matrix, fx.Node) else None


class _Matrix:
    """Parameter of two axes, and the transpositions between it and its only reader.

    Args:
        node: the node that reads the parameter.
        tensor: (inputs, outputs), what the product reads.
        views: the transpositions, the last one first.
    """

    def __init__(self, node: fx.Node, tensor: Tensor, views: list[fx.Node]) -> None:
        self.node, self.tensor, self.views = node, tensor, views

    @classmethod
    def of(cls, read: fx.Node, network: Network) -> _Matrix | None:
        """Return the matrix that a node reads, None if it is computed or read elsewhere as well."""
        node, views = read, []
        while node.op != "get_attr":
            source = operand(node)
            if source is None or axes_order(node, 2) is None or len(node.users) != 1:
                return None
            views.append(node)
            node = source
        own = network.tensor(node)
        if own is None or own.ndim != 2 or not is_read_once(node, network):
            return None
        turned = sum(axes_order(view, 2) == [1, 0] for view in views) % 2 == 1
        return cls(node, own.t() if turned else own, views)


def _is_bias(node: object, weight: Tensor, network: Network) -> bool:
    """Return whether a node is a parameter with an entry per output of a matrix."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or not is_read_once(node, network):
        return False
    tensor = network.tensor(node)
    return tensor is not None and tensor.shape == weight.shape[1:]


def _write_layer(network: Network, node: fx.Node, source: fx.Node, weight: _Matrix, bias: fx.Node | None) -> None:
    """Replace a product, and the addition of a parameter behind it, by a linear layer with the name of the weight."""
    last = node
    if bias is None and len(node.users) == 1 and operation(user := next(iter(node.users))) == "add" and not user.kwargs:
        others = [each for each in user.args if each is not node]
        if len(user.args) == 2 and len(others) == 1 and _is_bias(others[0], weight.tensor, network):
            last, bias = user, others[0]  # type: ignore[assignment]
    name = str(weight.node.target)
    layer = nn.Linear(weight.tensor.shape[0], weight.tensor.shape[1], bias=False, device="meta")
    layer.weight = _parameter(weight.tensor.detach().t().clone(), weight.tensor)
    if bias is not None and (own := network.tensor(bias)) is not None:
        layer.bias = _parameter(own.detach().clone(), own)
    network.modules[name] = layer.eval()
    network.cuts[name] = WeightCut(name)
    with network.graph.inserting_before(last):
        last.replace_all_uses_with(network.graph.call_module(name, (source,)))
    for gone in dict.fromkeys((last, node, *weight.views, weight.node, *([] if bias is None else [bias]))):
        network.graph.erase_node(gone)
        if gone.op == "get_attr":
            network.tensors.pop(str(gone.target))


def _parameter(tensor: Tensor, like: Any) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=like.requires_grad)
