"""Sizes of the tensors of a graph: their numbers on the example, and where they come from on any input."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sparsemtl.compaction.checks import created
from sparsemtl.compaction.graph.network import Network, Select
from sparsemtl.compaction.graph.operations import (
    CONVOLUTIONS,
    IDENTITIES,
    INSTANCE_NORMS,
    NORMS,
    argument,
    is_elementwise,
    operand,
    operation,
    shape_argument,
    torch_class,
)

Size = int | fx.Node | tuple[fx.Node, int]
"""Number that is the same for all inputs, number that a node computes, or (tensor, axis)."""

_SHAPE, _PARTS = "shape", "shapes"
CASTS = frozenset(["double", "float", "half", "bfloat16", "to", "type", "type_as"])
"""Operations that change the type or the device of a tensor alone."""
SPLITS = ("split", "chunk", "tensor_split")
"""Operations that cut a tensor into several along an axis."""
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.neg)
_ALIKE = (
    *(nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.Softmax),
    *NORMS,
    *INSTANCE_NORMS,
    *IDENTITIES,
)
"""Layers that keep all axes; a linear layer the last one excepted."""
_OVER_POSITIONS = frozenset(f"torch.nn.modules.{name}" for name in ("padding", "pooling", "upsampling"))
"""Modules of layers that keep the first axis."""
_COMPARISONS = ("eq", "ge", "gt", "le", "logical_and", "logical_or", "lt", "ne", "and", "or")
_REDUCTIONS = ("all", "amax", "amin", "any", "logsumexp", "mean", "std", "sum", "var")
_FILLED = ("empty", "ones", "rand", "randn", "zeros")
_SAME = ("softmax", "contiguous", "cumsum", "dropout", "flip", "masked_fill", "tril", "triu", "where", *_COMPARISONS)


def measure(network: Network, module: nn.Module, arguments: Sequence[Any]) -> None:
    """Record the shape of every tensor of a graph.

    Args:
        network: the network, of which every node has a new `shape_of` and `part_shapes` afterwards.
        module: a module with its parts.
        arguments: values of the graph's inputs.
    """
    _Measuring(module, graph=network.graph).run(*arguments)


class _Measuring(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        record_shape(n, value)
        listed = isinstance(value, (tuple, list)) and bool(value) and all(isinstance(each, Tensor) for each in value)
        n.meta[_PARTS] = [tuple(each.shape) for each in value] if listed else None
        return value


def record_shape(node: fx.Node, value: object) -> None:
    """Record the shape of a node's value, None if that is no tensor."""
    node.meta[_SHAPE] = tuple(value.shape) if isinstance(value, Tensor) else None


def forget(network: Network) -> None:
    """Remove the recorded shapes, which are not those of a network whose channels were removed."""
    for node in network.graph.nodes:
        node.meta.pop(_SHAPE, None)
        node.meta.pop(_PARTS, None)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a tensor on the example, None if it is unknown or the node is no tensor."""
    shape: tuple[int, ...] | None = node.meta.get(_SHAPE)
    return shape


def write_shape(node: fx.Node, shape: Sequence[int] | None, axis: int, entries: int) -> None:
    """Record the shape of a new node: another one's, with some entries on an axis."""
    if shape is not None:
        sizes = list(shape)
        sizes[axis] = entries
        node.meta[_SHAPE] = tuple(sizes)


def part_shapes(node: fx.Node) -> list[tuple[int, ...]] | None:
    """Return the shapes of a list of tensors on the example, None for other nodes."""
    shapes: list[tuple[int, ...]] | None = node.meta.get(_PARTS)
    return shapes


@contextmanager
def known_sizes(network: Network) -> Iterator[None]:
    """Find out once where all sizes come from, for a block that adds or changes no node but numbers in shapes."""
    if network.sizes is not None:
        yield
        return
    network.sizes = {}
    try:
        for node in network.graph.nodes:
            for axis in range(_rank(node)):
                network.sizes[node, axis] = _origin(node, axis, network)
        yield
    finally:
        network.sizes = None


def size_of(node: fx.Node, axis: int, network: Network) -> Size:
    """Return where the size of an axis comes from: a number, or an axis of the earliest tensor with the same size."""
    with known_sizes(network):
        assert network.sizes is not None
        found = network.sizes.get((node, axis))
        return _origin(node, axis, network) if found is None else found


def _origin(node: fx.Node, axis: int, network: Network) -> Size:
    earlier = _earlier(node, axis, network)
    if isinstance(earlier, tuple):
        return size_of(*earlier, network)
    return _of_reader(node, axis, network) or (node, axis) if earlier is None else earlier


def _of_reader(node: fx.Node, axis: int, network: Network) -> int | None:
    """Return the size of the last axis of an input that a linear layer reads: it is the same for all inputs."""
    shape = shape_of(node)
    if node.op != "placeholder" or shape is None or axis != len(shape) - 1:
        return None
    readers = (network.module(user) for user in node.users)
    return next((layer.in_features for layer in readers if torch_class(layer) is nn.Linear), None)  # type: ignore[union-attr, return-value]


def number_of(entry: object, network: Network) -> Size | None:
    """Return where a number in a shape comes from, None if it is no number."""
    if isinstance(entry, int) or not isinstance(entry, fx.Node):
        return entry if isinstance(entry, int) else None
    if entry.op == "call_method" and entry.target == "size":
        tensor, axis = operand(entry), argument(entry, 1, "dim", None)
        shape = None if tensor is None else shape_of(tensor)
        if tensor is None or shape is None or not isinstance(axis, int):
            return entry
        return size_of(tensor, axis % len(shape), network)
    if entry.target in _ARITHMETIC:
        numbers = [number_of(each, network) for each in entry.args]
        if all(isinstance(each, int) for each in numbers):
            return int(entry.target(*numbers))
    return entry


def trace_sizes(network: Network) -> None:
    """Let questions about sizes read the earliest tensor with that size, and write numbers that are the same always."""
    asked = [each for each in network.graph.nodes if each.op == "call_method" and each.target == "size"]
    with known_sizes(network):
        found = {node: number_of(node, network) for node in asked if len(node.args) == 2}
    for node, number in found.items():
        if isinstance(number, tuple):
            node.args = number
        elif isinstance(number, int):
            write_number(node, number)


def write_number(node: fx.Node, number: int) -> None:
    """Write a number in place of a node into all nodes that read it."""
    for user in list(node.users):
        user.args = map_arg(user.args, lambda each: number if each is node else each)
        user.kwargs = map_arg(user.kwargs, lambda each: number if each is node else each)


def _earlier(node: fx.Node, axis: int, network: Network) -> Size | None:
    """Return where the size of an axis comes from, one step back; None if it is the node's own."""
    shape = shape_of(node)
    if shape is None:
        return None
    if node.op == "get_attr":
        return shape[axis]
    name = operation(node)
    if node.op == "call_module":
        return _of_layer(node, axis, network)
    if node.target is created:
        return _of_created(node, axis, network)
    if name in CASTS:
        return None if (cast := operand(node)) is None else (cast, axis)
    if is_elementwise(node, None) or name in _SAME:
        return _of_repeating(node.all_input_nodes, axis, len(shape), network)
    if name == "cat":
        return _of_joined(node, axis, len(shape), network)
    source = operand(node)
    if source is None:
        return None
    if (order := axes_order(node, len(shape))) is not None:
        return source, order[axis]
    find = _SOURCES.get(name)
    return None if find is None else find(node, source, axis, network)


def _of_layer(node: fx.Node, axis: int, network: Network) -> Size | None:
    module, source, shape = network.module(node), operand(node), shape_of(node)
    kind = torch_class(module)
    if source is None or shape is None:
        return None
    if kind in (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding) and axis == len(shape) - 1:
        return shape[axis]
    if kind is nn.Embedding:
        return source, axis
    if isinstance(module, Select):
        return (source, axis) if axis != module.axis % len(shape) else None
    alike = kind in _ALIKE or is_elementwise(node, module)
    first = axis == 0 and (kind in CONVOLUTIONS or kind.__module__ in _OVER_POSITIONS)
    return (source, axis) if (alike or first) and _rank(source) == len(shape) else None


def _of_created(node: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the length of `torch.arange`, or a number in the shape of `torch.ones` and its like."""
    name, *given = node.args
    if name == "arange":
        numbers = given[1:] if given[0] == 0 and len(given) == 2 else given
        return number_of(numbers[0], network) if len(numbers) == 1 else None
    entries = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    return number_of(entries[axis], network) if name in _FILLED and len(entries) == _rank(node) else None


def _rank(node: fx.Node) -> int:
    """Return the number of axes of a tensor, 0 if it is unknown."""
    return len(shape_of(node) or ())


def _of_padded(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    pads = argument(node, 1, "pad", None)
    return (source, axis) if _is_unpadded(pads, _rank(node) - 1 - axis) else None


def _of_view(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    entries = shape_argument(node)
    number = number_of(entries[axis], network) if len(entries) == _rank(node) else -1  # not of `x.view(dtype)`
    if number != -1 and not isinstance(number, fx.Node):
        return number
    if fixed_group(node, network, lambda group: axis in group[1]) is not None:
        return (shape_of(node) or ())[axis]
    return _inferred(node, source, axis, network) if number == -1 else number


def _inferred(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the axis that a view keeps by -1: its other axes are as long as the tensor's, for inputs of any size."""
    before, after, entries = shape_of(source), shape_of(node), list(shape_argument(node))
    aligned = None if before is None or after is None else groups(before, after)
    if aligned is None or len(entries) != _rank(node):
        return None
    own = next(group for group in aligned if axis in group[1])
    same = all(_same_size(source, group, entries, network) for group in aligned if group is not own)
    return (source, own[0][0]) if same and len(own[0]) == len(own[1]) == 1 else None


def _of_expansion(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    entry, before = shape_argument(node)[axis], axis - _rank(node) + _rank(source)
    if before < 0:
        return None
    return number_of(entry, network) if entry != -1 else (source, before)


def _of_flattened(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    start = argument(node, 1, "start_dim", 0)
    return (source, axis) if isinstance(start, int) and axis < start else None


def _of_repeated(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    along = argument(node, 2, "dim", None)
    return (source, axis) if isinstance(along, int) and axis != along % _rank(node) else None


def _of_item(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the axis of the tensor that was unbound, split or indexed."""
    rank, whole = _rank(node), operand(source)
    along = argument(source, 1 if operation(source) == "unbind" else 2, "dim", 0)
    if operation(source) == "unbind":
        fits = whole is not None and isinstance(along, int)
        return (whole, axis + (axis >= along % (rank + 1))) if fits else None  # type: ignore[return-value]
    if operation(source) in SPLITS:
        other = isinstance(along, int) and along % rank != axis
        return (whole, axis) if whole is not None and other else None
    return _of_index(node, source, axis, network)


def _of_index(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the axis that an indexed tensor takes whole, 1 for a new axis."""
    before = shape_of(source)
    found = None if before is None else index_of_axes(node.args[1], len(before))
    if found is None:
        return None
    read = next((place for place, (made, _) in enumerate(found) if made == axis), None)
    if read is None:
        return 1
    return (source, read) if found[read][1] == slice(None) else None


def _of_unsqueezed(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    place = argument(node, 1, "dim", None)
    if not isinstance(place, int):
        return None
    place %= _rank(node)
    return 1 if place == axis else (source, axis - (axis > place))


def _of_product(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the axis of the first tensor; that of the second matrix for the last axis."""
    rank, factors = _rank(node), node.all_input_nodes
    if not all(2 <= _rank(each) <= rank for each in factors):
        return None
    if axis < rank - 2:
        return _of_repeating(factors, axis, rank, network)
    read = source if axis == rank - 2 else factors[-1]
    return read, axis - rank + _rank(read)


def _of_attention(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the axis of the queries; that of the values for the last axis."""
    rank = _rank(node)
    factors = [argument(node, place, name, None) for place, name in enumerate(("query", "key", "value"))]
    if not all(isinstance(each, fx.Node) and _rank(each) == rank for each in factors):
        return None
    if axis < rank - 2 and argument(node, 7, "enable_gqa", False) is not True:
        return _of_repeating(factors, axis, rank, network)
    return factors[2] if axis == rank - 1 else source, axis


def _of_joined(node: fx.Node, axis: int, rank: int, network: Network) -> Size | None:
    """Return the first tensor of a concatenation along another axis; along this one, the sum if all sizes are known."""
    listed, along = argument(node, 0, "tensors", ()), argument(node, 1, "dim", 0)
    if not isinstance(listed, (tuple, list)) or not isinstance(along, int) or not isinstance(listed[0], fx.Node):
        return None
    if along % rank != axis:
        return listed[0], axis
    sizes = [size_of(each, axis, network) for each in listed]
    return sum(sizes) if all(isinstance(each, int) for each in sizes) else None  # type: ignore[arg-type]


def _of_reduced(node: fx.Node, source: fx.Node, axis: int, network: Network) -> Size | None:
    """Return the axis of the tensor that is averaged or summed over others; 1 for one that it is summed over."""
    given = argument(node, 1, "dim", None)
    axes = (given,) if isinstance(given, int) else given
    if isinstance(given, bool) or not axes or not all(isinstance(each, int) for each in axes):
        return None
    rank = _rank(source)
    gone = {each % rank for each in axes}
    if _rank(node) == rank:
        return 1 if axis in gone else (source, axis)
    left = [each for each in range(rank) if each not in gone]
    return source, left[axis]


_Find = Callable[[fx.Node, fx.Node, int, Network], Size | None]
_SOURCES: dict[str, _Find] = {
    **dict.fromkeys(("bmm", "matmul"), _of_product),
    **dict.fromkeys(_REDUCTIONS, _of_reduced),
    **dict.fromkeys(("reshape", "view"), _of_view),
    "expand": _of_expansion,
    "flatten": _of_flattened,
    "getitem": _of_item,
    "pad": _of_padded,
    "repeat_interleave": _of_repeated,
    "scaled_dot_product_attention": _of_attention,
    "unsqueeze": _of_unsqueezed,
}
"""Operation -> function of the node, what it reads, an axis and the network: where the size of the axis comes from."""


def _is_unpadded(pads: object, place: int) -> bool:
    """Return whether padding leaves an axis as long as it is; `place` counts axes from the last one."""
    if not isinstance(pads, (tuple, list)) or not all(isinstance(each, int) for each in pads):
        return False
    return not any(pads[2 * place : 2 * place + 2])


def _of_repeating(sources: Iterable[fx.Node], axis: int, rank: int, network: Network) -> Size | None:
    """Return where the size of an axis comes from that tensors of length one are repeated along.

    Args:
        sources: tensors that the node reads.
        axis: axis of the output.
        rank: axes of the output.
        network: the network.

    Returns:
        None if the size may be that of either of two tensors: on other inputs, the other one may have length one.
    """
    found = {size_of(each, axis - rank + _rank(each), network) for each in sources if axis - rank + _rank(each) >= 0}
    longer = found - {1}
    fixed = [each for each in longer if isinstance(each, int)]
    if fixed or len(longer) == 1:
        return fixed[0] if fixed else longer.pop()
    return 1 if found == {1} else None


def index_of_axes(index: Any, rank: int) -> list[tuple[int | None, Any]] | None:
    """Return for each axis of an indexed tensor the axis that it becomes, None for a number, and its part of the index.

    Args:
        index: numbers, slices, new axes, an ellipsis.
        rank: axes of the tensor.

    Returns:
        None for an index of anything else.
    """
    parts = index if isinstance(index, tuple) else (index,)
    known = all(each is None or each is Ellipsis or isinstance(each, (int, slice)) for each in parts)
    if not known or any(isinstance(each, bool) for each in parts):
        return None
    rest = [slice(None)] * (rank - sum(each is not None and each is not Ellipsis for each in parts))
    place = next((i for i, each in enumerate(parts) if each is Ellipsis), len(parts))
    found: list[tuple[int | None, Any]] = []
    made = 0
    for each in (*parts[:place], *rest, *parts[place + 1 :]):
        if each is not None:
            found.append((None if isinstance(each, int) else made, each))
        made += not isinstance(each, int)
    return found


def axes_order(node: fx.Node, rank: int) -> list[int] | None:
    """Return for each axis of a transposed tensor the axis that it was before, None for other operations."""
    name = operation(node)
    order = list(range(rank))
    if name in ("transpose", "swapaxes", "swapdims"):
        given = [argument(node, 1, "dim0", None), argument(node, 2, "dim1", None)]
        if not all(isinstance(each, int) for each in given):
            return None
        one, other = (each % rank for each in given)
        order[one], order[other] = other, one
        return order
    if name == "permute":
        axes: Any = argument(node, 1, "dims", ()) if len(node.args) < 3 else node.args[1:]
        listed = isinstance(axes, (tuple, list)) and len(axes) == rank and all(isinstance(each, int) for each in axes)
        return [each % rank for each in axes] if listed else None
    if name == "t" and rank == 2:
        return [1, 0]
    if name in ("movedim", "moveaxis"):
        places = [argument(node, 1, "source", None), argument(node, 2, "destination", None)]
        known = all(isinstance(each, (int, tuple, list)) for each in places)
        return [size - 1 for size in torch.empty([i + 1 for i in order]).movedim(*places).shape] if known else None
    if node.target is getattr and (node.args[1] == "mT" or (node.args[1] == "T" and rank == 2)):
        return [*order[:-2], order[-1], order[-2]]
    return None


Group = tuple[list[int], list[int]]
"""Axes of a tensor, and axes of a view of it that have as many entries together."""


def groups(before: Sequence[int], after: Sequence[int]) -> list[Group] | None:
    """Return which axes of a tensor become which axes of a view: the shortest runs of axes with the same product."""
    found: list[Group] = []
    one, other = 0, 0
    while one < len(before) and other < len(after):
        ins, outs = [one], [other]
        while (left := math.prod(before[i] for i in ins)) != (right := math.prod(after[i] for i in outs)):
            longer, length = (ins, len(before)) if left < right else (outs, len(after))
            if longer[-1] + 1 >= length:
                return None
            longer.append(longer[-1] + 1)
        found.append((ins, outs))
        one, other = ins[-1] + 1, outs[-1] + 1
    if not found or 0 in before:
        return None
    found[-1][0].extend(range(one, len(before)))
    found[-1][1].extend(range(other, len(after)))
    same = math.prod(before) == math.prod(after)
    return found if same else None


def fixed_group(
    node: fx.Node, network: Network, wanted: Callable[[Group], bool], *, but: int | None = None
) -> Group | None:
    """Return a group of axes of a view if its sizes are those of the example for inputs of any size, else None.

    Args:
        node: the view.
        network: its network.
        wanted: which group.
        but: axis of the tensor that is viewed whose size is known to be the same always.
    """
    source, after = operand(node), shape_of(node)
    before = None if source is None else shape_of(source)
    entries = list(shape_argument(node))
    aligned = None if before is None or after is None else groups(before, after)
    if source is None or aligned is None or after is None or len(entries) != len(after):
        return None
    own = next(group for group in aligned if wanted(group))
    known = [isinstance(number := number_of(entries[each], network), int) and number != -1 for each in own[1]]
    if not all(isinstance(size_of(source, each, network), int) for each in own[0] if each != but):
        return None
    if own is aligned[-1] and all(known):
        return own  # what is in front of the last axes has as many entries as before
    others = [group for group in aligned if group is not own]
    inferred = any(entries[each] == -1 for group in others for each in group[1])
    same = all(_same_size(source, group, entries, network) for group in others)
    return own if same and known.count(False) <= (0 if inferred else 1) else None


def _same_size(source: fx.Node, group: Group, entries: list[Any], network: Network) -> bool:
    """Return whether a view keeps an axis as it is, for inputs of any size."""
    ins, outs = group
    if len(ins) > 1 or len(outs) > 1:
        return False
    return entries[outs[0]] == -1 or number_of(entries[outs[0]], network) == size_of(source, ins[0], network)
