"""How many axes the batches have that a network reads."""

from __future__ import annotations

from torch import fx, nn

from sparsemtl.compaction.checks import check_axes
from sparsemtl.compaction.network import Network
from sparsemtl.compaction.ops import CONVOLUTIONS, NORMS, is_elementwise, torch_class
from sparsemtl.heads.linear import pooled


def check_inputs(network: Network) -> None:
    """Let the network refuse batches with other axes than compaction takes them to have."""
    for node in list(network.graph.nodes):
        axes = axes_of_input(node, network) if node.op == "placeholder" else None
        if axes is not None and not any(user.target is check_axes for user in node.users):
            with network.graph.inserting_after(node):
                network.graph.call_function(check_axes, (node, axes))


def axes_of_input(source: fx.Node, network: Network) -> int | None:
    """Axes of a batch, as the layers that read it first tell; None if no layer depends on it.

    A convolution tells. So does a batch norm, or a head that averages over positions, behind a linear layer: features
    are then taken for vectors. Linear layers alone work on batches of any axes.
    """
    for user in source.users:
        if user.target is check_axes:
            return int(str(user.args[1]))
    vectors: bool = False
    waiting, seen = [(source, False)], {source}
    while waiting:
        node, linear = waiting.pop(0)
        for user in node.users:
            layer = network.module(user)
            kind = torch_class(layer)
            axes = CONVOLUTIONS.get(kind) or NORMS.get(kind)
            if axes is not None:
                return axes
            vectors |= linear and (kind in NORMS or user.target is pooled)
            keeps_axes = kind is nn.Linear or kind in NORMS or is_elementwise(user, layer)
            if keeps_axes and user not in seen:
                seen.add(user)
                waiting.append((user, linear or kind is nn.Linear))
    return 2 if vectors else None
