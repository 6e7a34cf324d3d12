"""Networks in files without code: tensors as safetensors, and beside them the graph of the computation as JSON.

The graph is that of `torch.export`: calls of torch's own operators (`aten`) and of arithmetic on sizes. Reading one
needs neither pickle nor the classes of the model. Operators by other names are refused.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsemtl.errors import CheckpointError, CompactionError, ParameterError
from sparsemtl.storage.files import write_tensors

KIND, VERSION = "network", 1

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem")
    },
    **{f"operator.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")},
    "math.floor": math.floor,
    "math.ceil": math.ceil,
}
"""Functions of numbers that a graph may call."""
_NAMES = {function: name for name, function in _ARITHMETIC.items()}
_ENUMS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
"""Kinds of torch's constants, which files hold by name."""


def write_network(path: str | Path, program: torch.export.ExportedProgram, names: Sequence[str]) -> None:
    """Write an exported network to a safetensors file at once.

    Args:
        path: the file.
        program: the network.
        names: names of its arguments, positional ones first.

    Raises:
        CompactionError: if its graph holds something that such a file cannot.
    """
    header = {"kind": KIND, "version": str(VERSION), "network": json.dumps(described(program, names), allow_nan=False)}
    write_tensors(path, tensors_of(program), header)


def described(program: torch.export.ExportedProgram, names: Sequence[str]) -> dict[str, Any]:
    """Return the graph of an exported network as JSON.

    Args:
        program: the network.
        names: names of its arguments, positional ones first.

    Raises:
        CompactionError: if the graph holds something that a file cannot.
    """
    parameters = dict(program.named_parameters())
    return {
        "nodes": [_encoded_node(node) for node in program.graph.nodes if node.op == "call_function"],
        "tensors": _tensor_nodes(program),
        "parameters": [name for name in program.state_dict if name in parameters],
        "arguments": _arguments(program, names),
        "output": _output(program),
    }


def tensors_of(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Return weights, buffers and constants of an exported network by name."""
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return {**program.state_dict, **constants}


def _tensor_nodes(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return node -> name of the tensor that it stands for."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _encoded_node(node: fx.Node) -> dict[str, Any]:
    arguments = [_encoded(value) for value in node.args], {key: _encoded(value) for key, value in node.kwargs.items()}
    return {"name": node.name, "calls": _name_of(node.target), "args": arguments[0], "kwargs": arguments[1]}


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if isinstance(target, Callable) and target in _NAMES:  # type: ignore[arg-type]
        return _NAMES[target]
    raise CompactionError(f"the network calls {target}, which a safetensors file cannot hold. Export it as pt2.")


def _encoded(value: Any) -> Any:
    """Return a value of a graph as JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (list, tuple)):
        return [_encoded(each) for each in value]
    if isinstance(value, fx.Node):
        return {"node": value.name}
    for kind, of in _ENUMS.items():
        if isinstance(value, of):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    raise CompactionError(f"the network has a constant {value!r}, which a safetensors file cannot hold.")


def _arguments(program: torch.export.ExportedProgram, names: Sequence[str]) -> dict[str, Any]:
    """Return argument -> its structure, whose leaves are nodes with shape and dtype, or constants."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    leaves = [_leaf(placeholders.get(each), each) for each in program.graph_signature.user_inputs]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return {name: _plain(value) for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items()}


class _Leaf(dict):  # type: ignore[type-arg]
    """JSON of a tensor or a constant, apart from the dicts of the structure."""


def _leaf(node: fx.Node | None, value: Any) -> _Leaf:
    tensor = None if node is None else node.meta.get("val")
    if node is None or not isinstance(tensor, Tensor):
        return _Leaf(constant=_encoded(value if node is None else tensor))
    shape = [fixed(size) for size in tensor.shape]
    return _Leaf(node=node.name, shape=shape, dtype=str(tensor.dtype).removeprefix("torch."))


def fixed(size: int | torch.SymInt) -> int | None:
    """Return a length of an exported network's input, None if it may be any."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def _plain(value: Any) -> Any:
    """Return a nest of dicts, lists and tuples as JSON that distinguishes them."""
    if isinstance(value, _Leaf):
        return dict(value)
    if isinstance(value, list) or type(value) is tuple:  # a graph has lists of a class of its own
        return {"list" if isinstance(value, list) else "tuple": [_plain(each) for each in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(each) for key, each in value.items()}}
    raise CompactionError(
        f"the network takes or returns a {type(value).__name__}; a safetensors file holds tensors, dicts, lists and "
        "tuples. Export it as pt2."
    )


def _output(program: torch.export.ExportedProgram) -> Any:
    named = [_Leaf(value=_encoded(value)) for value in program.graph.output_node().args[0]]
    return _plain(pytree.tree_unflatten(named, program.call_spec.out_spec))


def built(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Return the network of a description.

    Args:
        content: what `described` returned.
        tensors: weights, buffers and constants by name.

    Raises:
        CheckpointError: if it calls what no network of ours calls. Other errors mean that the description is damaged.
    """
    parameters = set(content["parameters"])
    owned = {name: nn.Parameter(t) if name in parameters else t for name, t in tensors.items()}
    graph = fx.Graph()
    nodes: dict[str, Any] = {}
    for argument, structure in content["arguments"].items():
        _unpack(structure, graph.placeholder(argument), graph, nodes, argument)
    for node, name in content["tensors"].items():
        tensors[name]
        nodes[node] = graph.get_attr(name)
    for call in content["nodes"]:
        args, kwargs = _decoded(call["args"], nodes), {key: _decoded(v, nodes) for key, v in call["kwargs"].items()}
        nodes[call["name"]] = graph.call_function(_function(call["calls"]), tuple(args), kwargs)
    graph.output(_repacked(content["output"], nodes))
    graph.lint()
    return fx.GraphModule(owned, graph, "Network").eval()


def _unpack(structure: Mapping[str, Any], node: fx.Node, graph: fx.Graph, nodes: dict[str, Any], where: str) -> None:
    """Add the nodes that take an argument apart and check its leaves."""
    if "node" in structure:
        dtype = _constant("dtype", structure["dtype"])
        graph.call_function(_check_tensor, (node, where, tuple(structure["shape"]), dtype))
        nodes[structure["node"]] = node
    elif "constant" in structure:
        graph.call_function(_check_constant, (node, where, _decoded(structure["constant"], {})))
    else:
        for key, part in _parts(structure):
            inside = graph.call_function(operator.getitem, (node, key))
            _unpack(part, inside, graph, nodes, f"{where}[{key!r}]")


def _parts(structure: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    ((kind, parts),) = structure.items()
    yield from parts.items() if kind == "dict" else enumerate(parts)


def _repacked(structure: Mapping[str, Any], nodes: Mapping[str, Any]) -> Any:
    ((kind, parts),) = structure.items()
    if kind == "value":
        return _decoded(parts, nodes)
    if kind == "dict":
        return {key: _repacked(part, nodes) for key, part in parts.items()}
    return {"list": list, "tuple": tuple}[kind](_repacked(part, nodes) for part in parts)


def _function(name: str) -> Callable[..., Any]:
    """Return the operator of a name; only torch's own ones that compute with tensors, and arithmetic."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten":
        found = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
        if isinstance(found, torch._ops.OpOverload) and not _reads_files(found):
            return found
    raise CheckpointError(f"it calls {name!r}, which is no operator on tensors of this torch ({torch.__version__}).")


def _reads_files(function: torch._ops.OpOverload) -> bool:
    return any("file" in argument.name for argument in function._schema.arguments) or "file" in function.name()


def _decoded(value: Any, nodes: Mapping[str, Any]) -> Any:
    """Return a value of a graph from its JSON."""
    if isinstance(value, list):
        return [_decoded(each, nodes) for each in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, name),) = value.items()
    if kind == "node":
        return nodes[name]
    if kind == "float":
        return float(name)
    if kind == "device":
        return torch.device(name)
    return _constant(kind, name)


def _constant(kind: str, name: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, _ENUMS[kind]):
        raise CheckpointError(f"{name!r} is no {kind} of this torch ({torch.__version__}).")
    return found


def _check_tensor(value: Any, where: str, shape: Sequence[int | None], dtype: torch.dtype) -> None:
    """Raise a ParameterError unless a tensor has the shape and dtype of the network's input."""
    found = tuple(value.shape) if isinstance(value, Tensor) else None
    fits = found is not None and len(found) == len(shape)
    if not fits or any(size not in (None, of) for size, of in zip(shape, found or (), strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ParameterError(
            f"input {where}: the network takes a tensor of shape ({expected}), got "
            f"{type(value).__name__ if found is None else found}."
        )
    if value.dtype.is_floating_point != dtype.is_floating_point:
        raise ParameterError(f"input {where}: the network takes {dtype}, got {value.dtype}.")


def tensor_inputs(network: fx.GraphModule) -> list[tuple[tuple[int | None, ...], torch.dtype]] | None:
    """Return shape and dtype of the inputs of a network that `built` returned, None if one of them is no tensor."""
    checks = {node.args[0]: node.args[2:] for node in network.graph.nodes if node.target is _check_tensor}
    arguments = [node for node in network.graph.nodes if node.op == "placeholder"]
    if set(checks) != set(arguments):
        return None
    return [checks[node] for node in arguments]


def _check_constant(value: Any, where: str, expected: Any) -> None:
    """Raise a ParameterError unless an argument that is no tensor is the one that the network was exported with."""
    if value != expected:
        raise ParameterError(f"input {where}: the network was exported for {expected!r}, got {value!r}.")
