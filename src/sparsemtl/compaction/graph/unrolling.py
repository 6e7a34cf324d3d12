"""Recurrent layers before channels are removed: one module per layer and direction, first states that are not zero."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from sparsemtl.compaction.checks import created
from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import argument, operand, operation, torch_class
from sparsemtl.compaction.graph.sizes import CASTS, shape_of
from sparsemtl.compaction.rules.recurrent import GATES, states_of

_ZEROS = frozenset(["zeros", "zeros_like", "new_zeros"])


def write_states(network: Network) -> None:
    """Write the first states of recurrent layers as tensors, and drop those that are zero, which is the default."""
    for node in list(network.graph.nodes):
        kind, source = torch_class(network.module(node)), operand(node)
        if kind not in GATES or source is None:
            continue
        given: Any = argument(node, 1, "hx", None)
        if kind is nn.LSTM and isinstance(given, fx.Node):
            with network.graph.inserting_before(node):
                given = tuple(network.graph.call_function(operator.getitem, (given, place)) for place in (0, 1))
        node.args, node.kwargs = (source, given), {}
        if all(_is_zero(each) for each in states_of(node)):
            node.args = (source,)


def _is_zero(node: fx.Node) -> bool:
    """Return whether a tensor is made of zeros."""
    while operation(node) in CASTS and (source := operand(node)) is not None:
        node = source
    return operation(node) in _ZEROS or (node.target is created and node.args[0] in _ZEROS)


def unroll(network: Network) -> bool:
    """Give every layer and direction of a recurrent module a module of its own, so that each has its own units.

    Modules in which every unit reads every other, and every layer all of the one before, stay whole: no unit of theirs
    could be removed. Shapes must be measured before, and again afterwards.

    Returns:
        True if there was such a module.
    """
    found = [node for node in network.graph.nodes if _is_unrolled(network, node)]
    for node in found:
        _Unrolling(network, node).run()
    return bool(found)


def _is_unrolled(network: Network, node: fx.Node) -> bool:
    layer: Any = network.module(node)
    source = operand(node)
    if torch_class(layer) not in GATES or layer not in network.free() or layer.proj_size:
        return False
    stacked = layer.num_layers > 1 or layer.bidirectional
    known = source is not None and shape_of(source) is not None
    return stacked and known and _has_zeros(layer) and all(map(_is_item, _tensors_of(node, layer)))


def _has_zeros(layer: Any) -> bool:
    """Return whether a unit may not read another one, or a unit of the layer before, by any gate."""
    gates = GATES[torch_class(layer)][0]
    weights = [w for name, w in layer.named_parameters() if name.startswith("weight_") and "ih_l0" not in name]
    return any(bool((w.detach().view(gates, layer.hidden_size, -1) == 0).all(0).any()) for w in weights)


def _tensors_of(node: fx.Node, layer: Any) -> list[fx.Node]:
    """Return the readers of a module, and those of the pair of states of an LSTM."""
    if torch_class(layer) is not nn.LSTM:
        return list(node.users)
    pairs = [user for user in node.users if _is_item(user) and user.args[1] == 1]
    return [*node.users, *(user for pair in pairs for user in pair.users)]


def _is_item(node: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[1] in (0, 1) and len(node.args) == 2


class _Unrolling:
    """Replacement of a recurrent module by one per layer and direction.

    Args:
        network: the network.
        node: the call of the module.
    """

    def __init__(self, network: Network, node: fx.Node) -> None:
        self.network, self.node, self.graph = network, node, network.graph
        layer: Any = network.module(node)
        self.layer, self.time = layer, -2 if layer.batch_first else 0
        self.first = states_of(node)
        self.last: list[list[fx.Node]] = [[] for _ in self._kinds()]

    def _kinds(self) -> range:
        """Return the numbers of the kinds of states: one, of an LSTM two."""
        return range(2 if torch_class(self.layer) is nn.LSTM else 1)

    def run(self) -> None:
        """Replace the node."""
        directions = range(2 if self.layer.bidirectional else 1)
        with self.graph.inserting_before(self.node):
            hidden: Any = operand(self.node)
            for place in range(self.layer.num_layers):
                parts = [self._direction(hidden, place, backward) for backward in directions]
                hidden = self.graph.call_function(torch.cat, (parts, -1)) if len(parts) > 1 else parts[0]
            self._replace(hidden)

    def _direction(self, hidden: fx.Node, place: int, backward: int) -> fx.Node:
        """Add one direction of one layer, and return its outputs."""
        name = f"{self.node.target}.l{place}{'_reverse' * backward}"
        self.network.modules[name] = self._part(place, backward)
        read = self._item(hidden, torch.flip, (self.time,)) if backward else hidden
        states = tuple(self._item(each, operator.getitem, self._row(place, backward)) for each in self.first)
        given = () if not states else (states if torch_class(self.layer) is nn.LSTM else states[0],)
        call = self.graph.call_module(name, (read, *given))
        outputs, state = (self._item(call, operator.getitem, index) for index in (0, 1))
        for kind in self._kinds():
            self.last[kind].append(self._item(state, operator.getitem, kind) if len(self.last) > 1 else state)
        return self._item(outputs, torch.flip, (self.time,)) if backward else outputs

    def _row(self, place: int, backward: int) -> slice:
        row = place * (2 if self.layer.bidirectional else 1) + backward
        return slice(row, row + 1)

    def _item(self, source: fx.Node, function: Any, value: Any) -> fx.Node:
        return self.graph.call_function(function, (source, value))

    def _part(self, place: int, backward: int) -> nn.RNNBase:
        """Return a module of one layer and one direction, with the weights of the whole one."""
        whole, suffix = self.layer, f"_l{place}{'_reverse' * backward}"
        options = {"nonlinearity": whole.nonlinearity} if torch_class(whole) is nn.RNN else {}
        width = getattr(whole, f"weight_ih{suffix}").shape[1]
        part: Any = torch_class(whole)(
            width, whole.hidden_size, bias=whole.bias, batch_first=whole.batch_first, device="meta", **options
        )
        for name in list(part._parameters):
            setattr(part, name, getattr(whole, f"{name.removesuffix('_l0')}{suffix}"))
        return part.eval()  # type: ignore[no-any-return]

    def _replace(self, outputs: fx.Node) -> None:
        """Let the readers of the node read the new nodes."""
        for user in list(self.node.users):
            if user.args[1] == 0:
                user.replace_all_uses_with(outputs)
            elif len(self.last) == 1:
                self._replace_state(user, self.last[0])
            else:
                for state in list(user.users):
                    self._replace_state(state, self.last[int(state.args[1])])  # type: ignore[arg-type]
                    self.graph.erase_node(state)
            self.graph.erase_node(user)
        self.graph.erase_node(self.node)

    def _replace_state(self, whole: fx.Node, parts: list[fx.Node]) -> None:
        """Let readers of one layer's state read that alone, and others all of them."""
        for user in list(whole.users):
            index = user.args[1] if user.target is operator.getitem else None
            own = isinstance(index, int) and not isinstance(index, bool) and -len(parts) <= index < len(parts)
            if own:
                with self.graph.inserting_before(user):
                    user.replace_all_uses_with(self._item(parts[index], operator.getitem, 0))  # type: ignore[index]
                self.graph.erase_node(user)
        if whole.users:
            with self.graph.inserting_before(whole):
                whole.replace_all_uses_with(self.graph.call_function(torch.cat, (parts, 0)))
