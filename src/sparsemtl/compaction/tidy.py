"""A traced graph says the same thing in one way: layers are modules, and nothing is there that does nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from sparsemtl.compaction.calls import argument, operand, operation
from sparsemtl.compaction.in_place import without_writing
from sparsemtl.compaction.network import Network
from sparsemtl.compaction.ops import DROPOUTS, IDENTITIES, UNCHANGED, torch_class

_CONVOLUTION = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
_LAYERS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


def tidy(network: Network) -> None:
    """Bring a graph into the form that rules are written for.

    Raises:
        CompactionError: if it writes into tensors that others are views of.
    """
    _drop_annotations(network)
    _drop_identities(network)
    without_writing(network)
    _functions_to_layers(network)
    drop_unread(network)


def drop_unread(network: Network) -> None:
    """Remove nodes that nobody reads; functions of the user's may be checks, and stay."""
    for node in reversed(list(network.graph.nodes)):
        if not node.users and _only_computes(node):
            network.graph.erase_node(node)


def _only_computes(node: fx.Node) -> bool:
    if node.op == "call_function":
        home = getattr(node.target, "__module__", None) or "torch"
        checks = "assert" in getattr(node.target, "__name__", "")
        return home.split(".")[0] in ("torch", "operator", "_operator", "builtins", "math") and not checks
    return node.op in ("call_module", "call_method", "get_attr")


def _drop_annotations(network: Network) -> None:
    """Take away the types that a user's forward names: they may be strings, or of modules that are not there later."""
    for node in network.graph.nodes:
        node.type = None


def _drop_identities(network: Network) -> None:
    for node in list(network.graph.nodes):
        source = operand(node)
        if source is not None and _is_identity(network, node):
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)


def _is_identity(network: Network, node: fx.Node) -> bool:
    module = network.module(node)
    if module is not None:
        return torch_class(module) in IDENTITIES and not module.training
    if operation(node) in UNCHANGED:
        return True
    return operation(node) in DROPOUTS and argument(node, 2, "training", True) is False


def _functions_to_layers(network: Network) -> None:
    """Turn `F.linear(x, self.weight)` and its like into calls of layers that own the weights."""
    for node in list(network.graph.nodes):
        source, kind = operand(node), _LAYERS.get(operation(node))
        layer = _layer(network, node, kind) if source is not None and kind is not None else None
        if layer is not None:
            name = _name_for(network, node)
            network.modules[name] = layer
            with network.graph.inserting_before(node):
                node.replace_all_uses_with(network.graph.call_module(name, (source,)))
            network.graph.erase_node(node)


def _layer(network: Network, node: fx.Node, kind: type[nn.Module]) -> nn.Module | None:
    """The layer that a function is, None if its weights are not the network's own."""
    given = argument(node, 1, "weight", None), argument(node, 2, "bias", None)
    weight, bias = (network.tensor(value) for value in given)
    if weight is None or (bias is None and given[1] is not None):
        return None
    options: dict[str, Any] = {"bias": False, "device": "meta"}
    if kind is nn.Linear:
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], **options)
    else:
        for place, (name, default) in enumerate(_CONVOLUTION):
            options[name] = argument(node, 3 + place, name, default)
        layer = kind(weight.shape[1] * options["groups"], weight.shape[0], weight.shape[2:], **options)
    layer.weight = _parameter(weight)
    layer.bias = None if bias is None else _parameter(bias)  # type: ignore[assignment]
    return layer.eval()


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _name_for(network: Network, node: fx.Node) -> str:
    """The name of the module that owns the weight, so that the weight keeps its name; or the node's own."""
    weight = argument(node, 1, "weight", None)
    owner = str(weight.target).rpartition(".")[0]
    taken = not owner or owner in network.modules
    return node.name if taken else owner
