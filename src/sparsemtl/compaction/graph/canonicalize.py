"""Canonical form of a traced graph, for which the rules are written.

Layers are modules, every node makes a new tensor, and nothing is there that has no effect.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.einsums import open_einsums
from sparsemtl.compaction.graph.network import Network, WeightCut
from sparsemtl.compaction.graph.operations import (
    DROPOUTS,
    IDENTITIES,
    UNCHANGED,
    argument,
    is_elementwise,
    named_position,
    operand,
    operation,
    torch_class,
)
from sparsemtl.compaction.graph.products import open_products
from sparsemtl.compaction.graph.sizes import write_number
from sparsemtl.compaction.report import described
from sparsemtl.errors import CompactionError

_CONVOLUTION = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
_LAYERS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


def canonicalize(network: Network) -> None:
    """Bring a graph into the canonical form.

    Raises:
        CompactionError: if it writes into tensors that others are views of.
    """
    _drop_annotations(network)
    _drop_identities(network)
    _open_gates(network)
    open_einsums(network)
    open_products(network)
    _open_stacks(network)
    _fold_sizes_of_weights(network)
    _without_writing(network)
    _functions_to_layers(network)
    drop_unread(network)


def drop_unread(network: Network) -> None:
    """Remove nodes that no other node reads; a user's functions may be checks, and stay."""
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
    """Remove the type annotations of a user's forward: they may be strings, or of modules that are missing later."""
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


def _open_gates(network: Network) -> None:
    """Replace gated linear units by the halves of their input, one of which is the other's gate."""
    for node in list(network.graph.nodes):
        source, graph = operand(node), network.graph
        module: Any = network.module(node)
        if source is None or not (operation(node) == "glu" or torch_class(module) is nn.GLU):
            continue
        axis = argument(node, 1, "dim", -1) if module is None else module.dim
        with graph.inserting_before(node):
            halves = graph.call_method("chunk", (source, 2, axis))
            value, gate = (graph.call_function(operator.getitem, (halves, index)) for index in (0, 1))
            gated = graph.call_function(operator.mul, (value, graph.call_function(torch.sigmoid, (gate,))))
        node.replace_all_uses_with(gated)
        graph.erase_node(node)


def _open_stacks(network: Network) -> None:
    """Replace stacks of tensors by concatenations along a new axis."""
    for node in list(network.graph.nodes):
        listed, axis = argument(node, 0, "tensors", ()), argument(node, 1, "dim", 0)
        if operation(node) == "stack" and isinstance(listed, (tuple, list)) and node.kwargs.get("out") is None:
            with network.graph.inserting_before(node):
                parts = [network.graph.call_method("unsqueeze", (each, axis)) for each in listed]
                node.replace_all_uses_with(network.graph.call_function(torch.cat, (parts, axis)))
            network.graph.erase_node(node)


def _fold_sizes_of_weights(network: Network) -> None:
    """Replace questions about the sizes of the network's own tensors by the answers."""
    for node in list(network.graph.nodes):
        asks = node.op == "call_method" and node.target == "size" and len(node.args) == 2
        tensor = network.tensor(operand(node)) if asks else None
        if tensor is not None:
            write_number(node, tensor.shape[node.args[1]])
            network.graph.erase_node(node)


def _functions_to_layers(network: Network) -> None:
    """Turn `F.linear(x, self.weight)` and its like into calls of layers that own the weights."""
    for node in list(network.graph.nodes):
        source, kind = operand(node), _LAYERS.get(operation(node))
        layer = _layer(network, node, kind) if source is not None and kind is not None else None
        if layer is not None:
            name = _name_for(network, node)
            network.modules[name] = layer
            network.cuts[name] = _cut_of(node)
            with network.graph.inserting_before(node):
                node.replace_all_uses_with(network.graph.call_module(name, (source,)))
            network.graph.erase_node(node)


def _layer(network: Network, node: fx.Node, kind: type[nn.Module]) -> nn.Module | None:
    """Return the layer that computes a function, None if its weights are not the network's own."""
    given = argument(node, 1, "weight", None), argument(node, 2, "bias", None)
    weight, bias = (_constant(network, value) for value in given)
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


def _constant(network: Network, value: Any) -> Tensor | None:
    """Return a tensor of the network's, or a part of one; None for other nodes and values."""
    if not isinstance(value, fx.Node) or value.op == "get_attr":
        return network.tensor(value)
    whole = operand(value)
    if operation(value) == "unsqueeze" and (own := network.tensor(whole)) is not None:
        return nn.Parameter(own.detach().unsqueeze(argument(value, 1, "dim", 0)), requires_grad=own.requires_grad)
    part = whole is not None and operation(value) == "getitem" and operation(whole) == "chunk"
    tensor = network.tensor(operand(whole)) if part and whole is not None else None
    if tensor is None or whole is None:
        return None
    parts = tensor.detach().chunk(argument(whole, 1, "chunks", 1), argument(whole, 2, "dim", 0))
    return nn.Parameter(parts[value.args[1]].clone(), requires_grad=tensor.requires_grad)  # type: ignore[index]


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def _cut_of(node: fx.Node) -> WeightCut:
    """Return what the weight of a function is cut from."""
    weight = argument(node, 1, "weight", None)
    if weight.op == "get_attr":
        return WeightCut(str(weight.target))
    if operation(weight) == "unsqueeze":
        return WeightCut(str(operand(weight).target))  # type: ignore[union-attr]
    whole, index = weight.args
    owner = str(operand(whole).target)  # type: ignore[union-attr]
    return WeightCut(owner, part=(argument(whole, 1, "chunks", 1), argument(whole, 2, "dim", 0), index))


def _name_for(network: Network, node: fx.Node) -> str:
    """Return the name of the module that owns the weight, so that the weight keeps its name; or the node's name."""
    weight = argument(node, 1, "weight", None)
    whole = weight
    while whole.op != "get_attr":
        whole = operand(whole)
    owner, _, own = str(whole.target).rpartition(".")
    if own.endswith("_weight"):  # another module may be named as its owner is
        owner = f"{owner}.{own.removesuffix('_weight')}".lstrip(".")
    owner = f"{owner}_{weight.args[1]}" if operation(weight) == "getitem" else owner
    called = set(network.modules) | {str(each.target) for each in network.graph.nodes if each.op == "call_module"}
    if owner in called or not owner:
        return node.name
    if any(name.startswith(f"{owner}.") for name in called):  # which would become parts of the layer
        owner = f"{owner}.{operation(node)}"
    return node.name if owner in called else owner


_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
_VIEWS = (nn.ChannelShuffle, nn.Flatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten)
_SIZES = ("size", "dim", "shape", "ndim", "device", "dtype")
_NEW = (
    "all amax amin any argmax argmin cat empty_like eq flip full_like ge gt interpolate isfinite isinf isnan le "
    "logical_and logical_not logical_or lt masked_fill matmul max_pool2d mean ne new_empty new_full new_ones "
    "new_zeros normalize ones_like softmax std sum tril triu var where zeros_like"
)
_FRESH = frozenset(_NEW.split())
"""Operations that make a tensor of memory of its own, beside those on elements."""
_ALIASES = frozenset(["contiguous", "detach"])


def _without_writing(network: Network) -> None:
    """Replace every operation in place; later readers of the tensor that it wrote to read its result.

    Raises:
        CompactionError: if another tensor may be a view of what is written to, so that it would change as well, or
            torch has no such operation that makes a new tensor.
    """
    for node in list(network.graph.nodes):
        if _writes(network, node):
            if not _is_number(node):
                _redirect(network, node)
            _make_plain(network, node)


def _writes(network: Network, node: fx.Node) -> bool:
    module = network.module(node)
    if module is not None:
        return getattr(module, "inplace", False) is True
    if node.kwargs.get("out") is not None:
        return True
    if node.op == "call_function":
        named = _is_torchs(node) and getattr(node.target, "__name__", "").endswith("_")
        return node.target in _OPERATORS or named or _asked_in_place(node)
    return node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")


def _asked_in_place(node: fx.Node) -> bool:
    """Return whether a function was called with `inplace=True`, with or without the name."""
    position = named_position(node.target, "inplace") if callable(node.target) and len(node.args) > 1 else None
    return argument(node, len(node.args) if position is None else position, "inplace", False) is True


def _is_torchs(node: fx.Node) -> bool:
    return (getattr(node.target, "__module__", None) or "torch").startswith("torch")


def _is_number(node: fx.Node) -> bool:
    """Return whether a node is a length or computed from lengths only: numbers are not written to."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.op != "call_function" or node.target is getattr:
        return node.op == "call_function" and node.args[1] in _SIZES
    home = getattr(node.target, "__module__", "")
    return home == "_operator" and bool(node.all_input_nodes) and all(map(_is_number, node.all_input_nodes))


def _redirect(network: Network, node: fx.Node) -> None:
    """Make later readers of the written tensor read the result."""
    written = operand(node)
    if written is None or node.kwargs.get("out") is not None:
        raise _refused(network, node)
    order = {other: place for place, other in enumerate(network.graph.nodes)}
    later = {user for user in written.users if order[user] > order[node]}
    earlier = set(written.users) - later - {node}
    if not all(_fresh(network, user) for user in earlier) or not _unviewed(network, written):
        raise _refused(network, node)
    written.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)


def _unviewed(network: Network, node: fx.Node) -> bool:
    """Return whether no tensor that another node reads may share a node's memory."""
    while not (_fresh(network, node) or node.op == "placeholder"):
        source = operand(node)
        if source is None or len(source.users) > 1:
            return False
        node = source
    return True


def _fresh(network: Network, node: fx.Node) -> bool:
    """Return whether a node makes a new tensor, or no tensor."""
    module = network.module(node)
    if module is not None:
        return torch_class(module).__module__.startswith("torch.nn.") and not isinstance(module, _VIEWS)
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SIZES
    name = operation(node)
    if name in _ALIASES:
        return False
    return is_elementwise(node, None) or name in _FRESH or (node.op == "call_method" and name in _SIZES)


def _make_plain(network: Network, node: fx.Node) -> None:
    """Turn an operation in place into one that makes a new tensor."""
    module = network.module(node)
    if module is not None:
        module.inplace = False  # type: ignore[assignment]
    elif node.op == "call_function" and _asked_in_place(node):
        position = named_position(node.target, "inplace") if callable(node.target) else None
        given = position is not None and len(node.args) > position
        node.args = (*node.args[:position], False, *node.args[position + 1 :]) if given and position else node.args
        node.kwargs = node.kwargs if given else {**node.kwargs, "inplace": False}
    elif node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
    else:
        node.target = _plain_target(network, node)


def _plain_target(network: Network, node: fx.Node) -> Any:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    plain = name.removesuffix("_")
    if node.op == "call_method" and callable(getattr(Tensor, plain, None)):
        return plain
    for owner in (torch, F):
        if node.op == "call_function" and hasattr(owner, plain):
            return getattr(owner, plain)
    raise _refused(network, node)


def _refused(network: Network, node: fx.Node) -> CompactionError:
    return CompactionError(
        f"{network.name}: {described(node, network)} writes in place into a tensor that another one may be a view of, "
        "or that it does not make. Use the operation that gives a new tensor (inplace=False, `x = x + y`)."
    )
