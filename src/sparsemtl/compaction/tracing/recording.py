"""Graph of the calls that a module makes with real tensors.

The module runs once, on an example. A mode of torch records every call of a function or method of tensors. All that
Python asks of a tensor (its class, its rank, its dtype) has the true answer. What is right for the example alone is an
error (a branch on values) or a guard (a branch on sizes).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from sparsemtl.compaction.checks import check_answer, check_axes, check_value, created
from sparsemtl.compaction.graph.sizes import record_shape
from sparsemtl.compaction.inputs import leaves, mapped, parts, tensors
from sparsemtl.compaction.tracing.numbers import Lazy, Recorded, number, plain
from sparsemtl.compaction.tracing.opening import attention, padded_encoder, pads, stays_whole, unflattened
from sparsemtl.errors import CompactionError

_QUESTIONS = (
    "is_floating_point is_complex is_contiguous is_signed is_inference is_conj is_neg is_pinned is_shared "
    "is_same_size stride storage_offset element_size get_device layout is_cuda is_cpu is_mps is_xpu "
    "is_meta is_leaf is_sparse is_sparse_csr is_quantized is_nested is_mkldnn requires_grad retains_grad "
    "grad_fn names has_names _version output_nr itemsize nbytes can_cast result_type promote_types "
    "__repr__ __format__ __str__"
)
_ANSWERED = frozenset(_QUESTIONS.split())
"""Questions that have nothing to do with values or channels: the answer is all there is to them."""
_RANKS = frozenset(["dim", "ndim", "ndimension"])
_DIVISIONS = frozenset(["chunk", "glu", "split", "tensor_split"])
_VIEWS = frozenset(["reshape", "unflatten", "view"])
_STATIC = ("static_k", "static_v")
_SPECIAL = {
    getattr(Tensor, name): name for name in ("__pow__", "__ipow__", "__itruediv__", "__pos__", "__neg__", "__abs__")
}
"""Special methods of tensors that torch gives another name."""
_SWAPPED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rpow__": operator.pow,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}
_HELD = (*fx.node.base_types, torch.memory_format, torch.layout, type(None), type(Ellipsis))


class Recorder(TorchFunctionMode):
    """Mode that records the calls of torch's functions, and of given modules and functions.

    Args:
        root: the module whose parts are named.
        is_leaf: returns whether a module with a name stays one node.

    Attributes:
        graph: recorded graph.
        inside: names of the modules that are running.
        constants: name -> tensor that the graph reads and the module does not own.
        likes: name -> name of the tensor of the module that an empty tensor of its type and device stands for.
    """

    def __init__(self, root: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.graph = fx.Graph()
        self.inside: list[str] = []
        self.constants: dict[str, Tensor] = {}
        self.likes: dict[str, str] = {}
        self._modules = {module: name for name, module in root.named_modules()}
        owned = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
        self._names = {id(tensor): name for name, tensor in reversed(owned)}
        self._nodes: dict[int, Lazy] = {}
        self._types: dict[torch.dtype, Lazy] = {}
        self._devices: dict[int, Lazy] = {}
        self._sizes: dict[tuple[int, int], Lazy] = {}
        self._shares: dict[int, tuple[Lazy, Any, int]] = {}
        self._alive: list[object] = []  # an id names an object only as long as it lives
        self._inputs: list[Tensor] = []
        self._guards: dict[tuple[fx.Node, Any, Any], bool] = {}
        self._ranks_matter = False
        self._busy = False

    def begin(self, arguments: dict[str, Any]) -> None:
        """Name the arguments that the module is called with."""
        for name, value in arguments.items():
            node = self.graph.placeholder(name)
            self._register(value, functools.partial(_same, node))
            self._inputs += tensors(value)
        for node, value in zip(list(self.graph.nodes), arguments.values(), strict=True):
            if isinstance(value, (bool, int, float, str)):
                self.graph.call_function(check_value, (node, value))

    def finish(self, output: Any) -> None:
        """Add guards and the output."""
        read = self._argument(output)
        for (node, compare, other), answer in self._guards.items():
            self.graph.call_function(check_answer, (self.graph.call_function(compare, (node, other)), answer))
        for tensor in self._inputs if self._ranks_matter else []:
            with self.graph.inserting_after(node := self._node_of(tensor)):
                self.graph.call_function(check_axes, (node, tensor.ndim))
        self.graph.output(read)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make a call, and record it."""
        kwargs = kwargs or {}
        if self._busy or not self._knows(args, kwargs):
            return func(*args, **kwargs)
        name = _name_of(func)
        if func is F.multi_head_attention_forward and not any(kwargs.get(each) is not None for each in _STATIC):
            with self:
                return attention(*args, **kwargs)
        if name == "unflatten":
            with self:
                return unflattened(*args, **kwargs)
        value = self._run(func, args, kwargs)
        if name in ("shape", "size"):
            return self._sized(args[0], value, *args[1:], **kwargs)
        if name in ("dtype", "device") and args:
            return self._kind(name, args[0], value)
        if name in ("__setitem__", "__set__"):
            raise CompactionError(
                "it writes into a part of a tensor (`x[...] = y`), which is not followed. Make a new tensor instead, "
                "with torch.where, torch.cat or torch.stack"
            )
        # the canonical form of `glu` is a division
        more_axes = isinstance(value, Tensor) and name in _VIEWS and value.ndim > args[0].ndim
        self._ranks_matter |= more_axes or name in _DIVISIONS
        if tensors(value) or (value is None and name.startswith("_assert")):
            value = _renamed(value, args, kwargs)
            self._write(value, *_form(func, name, args, kwargs))
            return value
        return self._answer(name, args, kwargs, value)

    def call_module(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module, as one node or looking into it."""
        name = self._modules.get(module)
        if self._busy or name is None:
            return call(module, *args, **kwargs)
        self.inside.append(name)
        if self.is_leaf(module, name) or stays_whole(module, args, kwargs):
            self._check_weights(module)
            self._ranks_matter |= isinstance(module, (nn.Embedding, nn.RNNBase))  # their rules take the example's
            value = self._run(functools.partial(call, module), args, kwargs)
            self._write(value, "call_module", name, args, kwargs)
        else:
            value = (
                padded_encoder(module, *args, **kwargs) if pads(module, args, kwargs) else call(module, *args, **kwargs)
            )
        self.inside.pop()  # not after an error: it names where the error was
        return value

    def call_function(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function, as one node if it reads what is recorded."""
        if self._busy or not self._knows(args, kwargs):
            return function(*args, **kwargs)
        value = self._run(function, args, kwargs)
        self._write(value, "call_function", function, args, kwargs)
        return value

    def length(self, value: Any) -> Any:
        """Return the length as a recorded size."""
        if self._busy or not isinstance(value, Tensor) or not self._knows((value,), {}):
            return len(value)
        return self._sized(value, self._run(len, (value,), {}), 0)

    def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function on plain numbers, without recording."""
        self._busy = True
        try:
            return function(*mapped(plain, tuple(args)), **mapped(plain, kwargs))
        finally:
            self._busy = False

    def _write(self, value: Any, kind: str, target: Any, args: Any, kwargs: Any) -> None:
        """Add a call to the graph; its value stands for its node from now on."""
        given = tuple(self._argument(each) for each in args)
        node = self.graph.create_node(kind, target, given, self._argument(dict(kwargs)))
        self._register(value, functools.partial(_same, node))

    def _check_weights(self, module: nn.Module) -> None:
        """Raise if a module runs with other weights than its own."""
        if any(id(tensor) not in self._names for tensor in [*module.parameters(), *module.buffers()]):
            raise CompactionError("its weights are replaced by others while the model runs")

    def _register(self, value: Any, node: Lazy) -> None:
        """Register a value, and all tensors in it, for a node."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._shares.pop(id(value), None)
            self._alive.append(value)
            return
        for function, key, part in parts(value):
            self._register(part, functools.cache(functools.partial(self._part, function, node, key)))
            if isinstance(value, tuple) and isinstance(part, Tensor):
                self._shares[id(part)] = (node, key, len(value))

    def _part(self, function: Callable[..., Any], whole: Lazy, key: Any) -> fx.Node:
        return self.graph.call_function(function, (whole(), key))

    def _knows(self, args: Any, kwargs: Any) -> bool:
        """Return whether a call reads anything that is recorded, or that the module owns."""
        return any(self._is_known(leaf) for leaf in leaves((args, kwargs)))

    def _is_known(self, value: Any) -> bool:
        if isinstance(value, torch.dtype):
            return value in self._types
        known = (self._nodes, self._names, self._devices)
        return isinstance(value, Recorded) or any(id(value) in each for each in known)

    def _argument(self, value: Any) -> Any:
        """Return the argument of a graph's node for a value."""
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, Recorded):
            return value.node()
        if isinstance(value, torch.dtype) and value in self._types:
            return self._types[value]()
        if id(value) in self._devices:
            return self._devices[id(value)]()
        if isinstance(value, slice):
            return slice(*map(self._argument, (value.start, value.stop, value.step)))
        if isinstance(value, PackedSequence):
            raise CompactionError(
                "it reads or gives a packed sequence, which a graph cannot hold. Put the packing, the layer and the "
                "unpacking into one module, and name that in `leaf_modules`"
            )
        if isinstance(value, (tuple, list)):
            if (whole := self._all_of(value)) is not None:
                return whole()
            inside = [self._argument(each) for each in value]
            if hasattr(value, "_fields"):
                return type(value)(*inside)
            return inside if isinstance(value, list) else tuple(inside)
        if isinstance(value, dict):
            return {key: self._argument(each) for key, each in value.items()}
        if isinstance(value, _HELD):
            return value
        raise CompactionError(f"a graph cannot hold {type(value).__name__} objects, which it takes or gives")

    def _all_of(self, values: Any) -> Lazy | None:
        """Return the node of which a list of tensors is the whole output: other inputs may give more or fewer."""
        found = [self._shares.get(id(each)) for each in values]
        first = found[0] if found else None
        if first is None or found != [(first[0], index, first[2]) for index in range(first[2])]:
            return None
        return first[0]

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            name = self._names.get(id(tensor))
            if name is None:
                name = f"_constant_{len(self.constants)}"
                self.constants[name] = tensor.detach().clone()
            self._register(tensor, functools.partial(_same, self.graph.create_node("get_attr", name)))
        node = self._nodes[id(tensor)]()
        record_shape(node, tensor)
        return node

    def _depends(self, value: Any) -> bool:
        """Return whether a value was computed from the inputs."""
        waiting = [self._node_of(t) for t in tensors(value) if id(t) in self._nodes]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if node.op == "placeholder":
                return True
            new = [each for each in node.all_input_nodes if each not in seen]
            seen.update(new)
            waiting += new
        return False

    def _answer(self, name: str, args: Any, kwargs: Any, value: Any) -> Any:
        """Return the value of a call that returns no tensor."""
        if name in _RANKS:
            self._ranks_matter = True
            return value
        if name in ("numel", "nelement"):
            return number(
                value, self, functools.cache(lambda: self.graph.call_method("numel", (self._node_of(args[0]),)))
            )
        if name == "__len__" and self._depends(args):
            self.guard(self._sized(args[0], value, 0), operator.eq, value)
            return value
        if name not in _ANSWERED and value is not None and self._depends((args, kwargs)):
            raise CompactionError(f"`{name}` gives Python the values of a tensor")
        return value

    def _sized(self, tensor: Tensor, value: Any, dim: Any = None) -> Any:
        """Return a shape, or a size of one axis, with its node."""
        if isinstance(value, torch.Size):
            return torch.Size([self._sized(tensor, size, axis) for axis, size in enumerate(value)])
        axis = plain(dim) % max(tensor.ndim, 1)
        key = (id(tensor), axis)
        if key not in self._sizes:
            self._sizes[key] = functools.cache(lambda: self.graph.call_method("size", (self._node_of(tensor), axis)))
        return number(value, self, self._sizes[key])

    def _kind(self, name: str, tensor: Tensor, value: Any) -> Any:
        """Return the dtype or device of a tensor with its node, which stays right when the network is moved or cast."""
        if not self._depends(tensor) and id(tensor) in self._names:
            like = f"_like_{len(self.likes)}"
            self.likes[like] = self._names[id(tensor)]
            ask = functools.cache(
                lambda: self.graph.call_function(getattr, (self.graph.create_node("get_attr", like), name))
            )
        else:
            ask = functools.cache(lambda: self.graph.call_function(getattr, (self._node_of(tensor), name)))
        if isinstance(value, torch.device):
            self._devices[id(value)] = ask
            self._alive.append(value)
        elif value.is_floating_point:
            self._types[value] = ask
        return value

    def guard(self, number: Recorded, compare: Callable[[Any, Any], bool], other: Any) -> None:
        """Note a question about a size."""
        if not self._busy:
            self._guards[number.node(), compare, self._argument(other)] = compare(plain(number), plain(other))

    def compute(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Add a call of a function on numbers."""
        return self.graph.call_function(function, tuple(self._argument(each) for each in args))


def _same(node: fx.Node) -> fx.Node:
    return node


def _renamed(value: Any, args: Any, kwargs: Any) -> Any:
    """Return another tensor of the same memory where a call returns its argument, as `x.to(x.dtype)` does.

    In another precision the two may differ.
    """
    given = isinstance(value, Tensor) and any(value is each for each in tensors((args, kwargs)))
    return value.view_as(value) if given else value


def _name_of(func: Any) -> str:
    """Return the name of a function or method, or of the attribute that is read."""
    name = _SPECIAL.get(func) or getattr(func, "__name__", "")
    return str(func.__self__.__name__) if name == "__get__" else str(name)


def _form(func: Any, name: str, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """Return a call as (operation, target, arguments) of a graph's node."""
    if name in _SWAPPED:
        return "call_function", _SWAPPED[name], (args[1], args[0]), kwargs
    if getattr(func, "__name__", "") == "__get__":
        return "call_function", getattr, (args[0], name), {}
    if name.startswith("__") and hasattr(operator, name):
        return "call_function", getattr(operator, name.strip("_"), None) or getattr(operator, name), args, kwargs
    if isinstance(args[0] if args else None, Tensor) and getattr(Tensor, name, None) is func:
        return "call_method", name, args, kwargs
    if not tensors((args, kwargs)) and getattr(torch, name, None) is func:
        return "call_function", created, (name, *args), kwargs
    return "call_function", func, args, kwargs
