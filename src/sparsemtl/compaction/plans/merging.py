"""Merging of networks in one graph: what several of them compute from equal weights is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsemtl.compaction.graph.network import Network
from sparsemtl.compaction.graph.operations import operation

_PREFIX = "networks."


class Together(nn.Module):
    """Networks of several tasks on one input, before they are compacted.

    Args:
        networks: task -> model that computes the task with its own network.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.tasks = tuple(networks)
        self.networks = nn.ModuleList(networks.values())  # names of tasks need not be names of modules

    def forward(self, x: Any) -> dict[str, Any]:
        """Return task -> outputs."""
        pairs = zip(self.tasks, self.networks, strict=True)
        return {task: network(x, tasks=(task,))[task] for task, network in pairs}


class Groups(nn.Module):
    """Compacted networks of groups of tasks on one input.

    Args:
        networks: tasks of a group -> its network, which maps a batch to task -> outputs; that of one task maps a batch
            to the outputs themselves.
        tasks: all tasks, in the order of the outputs.
    """

    def __init__(self, networks: Mapping[tuple[str, ...], nn.Module], tasks: Sequence[str]) -> None:
        super().__init__()
        self.groups, self.tasks = tuple(networks), tuple(tasks)
        self.networks = nn.ModuleList(networks.values())

    def forward(self, x: Any) -> dict[str, Any]:
        """Return task -> outputs."""
        found: dict[str, Any] = {}
        for group, network in zip(self.groups, self.networks, strict=True):
            outputs = network(x)
            found |= outputs if len(group) > 1 else {group[0]: outputs}
        return {task: found[task] for task in self.tasks}


def merge_equal(network: Network) -> None:
    """Replace every node that computes what an earlier one computes, from equal weights and the same inputs.

    Functions that draw random numbers, and functions of a user's own, are not replaced.
    """
    first: dict[Any, fx.Node] = {}
    for node in list(network.graph.nodes):
        key = _key(node, network)
        if key is not None and (found := first.setdefault(key, node)) is not node:
            node.replace_all_uses_with(found)
            network.graph.erase_node(node)


def _key(node: fx.Node, network: Network) -> Any:
    """Return what is equal for nodes that compute the same; None for a node that must stay."""
    module, tensor = network.module(node), network.tensor(node)
    if tensor is not None:
        return "tensor", _of_tensor(tensor)
    if module is None and (node.op not in ("call_function", "call_method") or _may_differ(node)):
        return None
    called = node.target if module is None else _of_module(str(node.target), module)
    key = (node.op, called, *_frozen((node.args, dict(node.kwargs))))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _may_differ(node: fx.Node) -> bool:
    """Return whether two calls on the same inputs may give different results, or one may matter for the other."""
    name = operation(node)
    ours = str(getattr(node.target, "__module__", "")).startswith("sparsemtl.")
    name = str(node.args[0]) if ours and node.args and isinstance(node.args[0], str) else name
    packet: Any = getattr(torch.ops.aten, name, None) if name else None
    seeded = torch.Tag.nondeterministic_seeded
    drawn = packet is not None and any(seeded in getattr(packet, each).tags for each in packet.overloads())
    plain = getattr(node.target, "__module__", None) in ("builtins", "math")
    return drawn or name.startswith("rand") or not (name or ours or plain)


def _frozen(value: Any) -> Iterator[Any]:
    """Yield the parts of a call's arguments, each with its type: 1, 1.0 and True are equal in Python."""
    if isinstance(value, (list, tuple)):
        yield type(value), len(value)
        for each in value:
            yield from _frozen(each)
    elif isinstance(value, dict):
        yield dict, len(value)
        for name, each in value.items():
            yield name
            yield from _frozen(each)
    elif isinstance(value, slice):
        yield slice
        yield from _frozen((value.start, value.stop, value.step))
    else:
        yield type(value), value


def _of_module(name: str, module: nn.Module) -> Any:
    """Return class, options and tensors of a module, and its name inside its network unless its class is torch's."""
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    hooks = bool(module._forward_hooks or module._forward_pre_hooks)
    of_torch = type(module).__module__.startswith("torch.nn.modules.") and not hooks
    where = "" if of_torch else name.removeprefix(_PREFIX).partition(".")[2]
    options = [
        (inside, type(part), tuple(_options(part)), tuple(key for key, t in part._parameters.items() if t is None))
        for inside, part in module.named_modules()
    ]
    contents = tuple((key, _of_tensor(tensor)) for key, tensor in tensors.items())
    return (id(module) if hooks else where), tuple(options), contents


_PLAIN: tuple[type, ...] = (bool, int, float, str, tuple, list, type(None), torch.dtype)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _options(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the attributes of a module, plain ones by value and others by identity: copies share functions alone."""
    for name, value in vars(module).items():
        if name not in _OF_EVERY_MODULE or name == "training":
            yield name, repr(value) if isinstance(value, _PLAIN) else str(id(value))


def _of_tensor(tensor: Tensor) -> Any:
    """Return what is equal for tensors that are equal bit for bit."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(raw.numpy().data).digest()
