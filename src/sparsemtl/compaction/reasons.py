"""Why a layer keeps channels: what stands in the way, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx, nn

from sparsemtl.compaction.network import Network
from sparsemtl.compaction.ops import CONVOLUTIONS, NORMS, torch_class
from sparsemtl.compaction.rules import ChannelRule, UnknownRule
from sparsemtl.compaction.select import Select


def reason_for(
    node: fx.Node, network: Network, rules: Mapping[fx.Node, ChannelRule], free: Collection[nn.Module]
) -> str:
    """Why no more of a layer is removed than its weights would let, "" if nothing is in the way."""
    own = _own_reason(node, network, rules[node], free)
    blocking = [] if own else _opaque_readers(node, rules)
    if not blocking:
        return own
    names = ", ".join(dict.fromkeys(described(reader, network) for reader in blocking))
    return f"all its channels are read by {names}, not followed through"


def _own_reason(node: fx.Node, network: Network, rule: ChannelRule, free: Collection[nn.Module]) -> str:
    """Return what is in the way of changing a layer itself."""
    module = network.module(node)
    if module is None:
        return ""
    if node.target in network.leaf_modules:
        return "named in `leaf_modules`"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks"
    if module not in free:
        return "its weights are read more than once"
    groups = getattr(module, "groups", 1)
    if not isinstance(rule, UnknownRule):
        return ""
    if torch_class(module) in CONVOLUTIONS and groups > 1:
        return f"a convolution of {groups} groups"
    kinds = (*CONVOLUTIONS, *NORMS, nn.Linear)
    if torch_class(module) in kinds:
        return "its input has its channels on another axis, or they are not known"
    return f"{type(module).__name__} is not followed through"


def _opaque_readers(node: fx.Node, rules: Mapping[fx.Node, ChannelRule]) -> list[fx.Node]:
    """Nodes that need all that they read, among those that a layer's channels come to before the next layer."""
    found, waiting, seen = [], list(node.users), set(node.users)
    while waiting:
        user = waiting.pop(0)
        rule = rules.get(user)
        if rule is None or user.op == "output":
            continue
        if isinstance(rule, UnknownRule):
            found.append(user)
        elif rule.passes_on:
            new = [each for each in user.users if each not in seen]
            seen.update(new)
            waiting += new
    return found


def described(node: fx.Node, network: Network) -> str:
    """A node in words."""
    module = network.module(node)
    if module is not None:
        return f"{node.target!r} ({type(module).__name__})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"`{name}`"


def is_reported(module: nn.Module) -> bool:
    """Return whether a layer has channels of its own, or weights that a report should mention."""
    return not isinstance(module, Select) and next(module.parameters(), None) is not None
