"""Tracing of a module into the graph of its computation."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from sparsemtl.architectures.gates import mixed
from sparsemtl.backbones.segnet import unpooled
from sparsemtl.backbones.shapes import check_sides
from sparsemtl.compaction.checks import check_answer, check_axes, check_no_grad, check_sizes, check_value, created
from sparsemtl.compaction.copies import fold_weights
from sparsemtl.compaction.graph.network import Constant, Network, Select
from sparsemtl.compaction.inputs import Inputs
from sparsemtl.compaction.timing.sparse_layers import SparseLinear
from sparsemtl.compaction.tracing.opening import is_opened, open_transposed
from sparsemtl.compaction.tracing.recording import Recorder
from sparsemtl.compaction.tracing.watching import watched
from sparsemtl.errors import CompactionError, unknown_name
from sparsemtl.heads.linear import pooled
from sparsemtl.networks.model import MultiTaskModel

_CHECKS = (check_sides, check_axes, check_answer, check_no_grad, check_sizes, check_value)
_CALLS = (pooled, unpooled, mixed, created, *_CHECKS)
"""Functions that stay one node each."""


def root_of(model: nn.Module, tasks: tuple[str, ...] | None, *, alone: bool, leaf_modules: Collection[str]) -> Root:
    """Return the module to trace of a model, in eval mode.

    Args:
        model: the model; the result shares its modules.
        tasks: of a multi-task model, the tasks to compute; None for any other module.
        alone: give the output of the only task itself in place of a dict.
        leaf_modules: names of modules that are not looked into.

    Raises:
        CompactionError: if no graph could be right for the model.
    """
    _check(model, leaf_modules)
    if tasks is not None:
        assert isinstance(model, MultiTaskModel)
        root = _Tasks(model, tasks, alone).eval()
        return Root(root, _name(model), "network.", frozenset(leaf_modules), output=tasks[0] if alone else "")
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        raise CompactionError(
            f"{type(model).__name__} has hooks, or a forward of its own beside its class's, that a graph would miss. "
            "Remove them, or put the module inside another one."
        )
    return Root(model.eval(), _name(model), "", frozenset(leaf_modules))


@dataclass(frozen=True)
class Root:
    """Module to trace.

    Attributes:
        module: the module, in eval mode.
        name: name of the user's class.
        prefix: prefix of the names of the user's modules in it.
        leaf_modules: names of modules that are not looked into, without the prefix.
        output: task of the only output, "" for any other module.
        merges: compute once what several parts compute from equal weights and the same inputs.
    """

    module: nn.Module
    name: str
    prefix: str
    leaf_modules: frozenset[str]
    output: str = ""
    merges: bool = False


def traced(root: Root, ran: nn.Module | None = None, inputs: Inputs | None = None) -> Network:
    """Return the graph of a module.

    Args:
        root: the module. Weights that it computes are replaced by their values; the result shares all others.
        ran: a copy of the module, in the precision to run it in; it is changed. Only with inputs.
        inputs: what to run it on; without them torch.fx's stand-ins take their place, of which Python can ask little.

    Raises:
        CompactionError: if the module does what no graph can hold, naming the part.
    """
    fold_weights(root.module)
    leaf_modules = [f"{root.prefix}{name}" for name in root.leaf_modules]
    open_transposed(root.module, leaf_modules)
    if isinstance(root.module, fx.GraphModule):
        root.module.graph._tracer_cls = _Tracer  # what is pickled is traced anew, and only ours knows our functions
        graph = root.module.graph
    elif inputs is None or ran is None:
        graph = _symbolic(root)
    else:
        fold_weights(ran)
        open_transposed(ran, leaf_modules)
        graph = _recorded(root, ran, inputs)
    return Network.of(root.module, graph, prefix=root.prefix, name=root.name, leaf_modules=root.leaf_modules)


def _recorded(root: Root, ran: nn.Module, inputs: Inputs) -> fx.Graph:
    """Graph of the calls that a module makes with real tensors."""
    tracer = _Tracer((f"{root.prefix}{each}" for each in root.leaf_modules), opens=True)
    recorder = Recorder(ran, tracer.is_leaf_module)
    inputs = inputs.mapped(Tensor.clone)  # the model may write into them
    arguments = inputs.named(ran)
    try:
        with watched(recorder, ran, _CALLS):
            recorder.begin(arguments)
            recorder.finish(type(ran).forward(ran, *inputs.args, **inputs.kwargs))
    except Exception as error:
        raise _untraceable(root, recorder.inside, error) from error
    for name, tensor in recorder.constants.items():
        root.module.register_buffer(name, tensor)
    for name, of in recorder.likes.items():
        root.module.register_buffer(name, operator.attrgetter(of)(root.module).detach().new_empty(0))
    recorder.graph._tracer_cls = _Tracer
    return recorder.graph


def _symbolic(root: Root) -> fx.Graph:
    """Return the graph of a module's calls with stand-ins for tensors."""
    tracer = _Tracer((f"{root.prefix}{each}" for each in root.leaf_modules), strict=True)
    try:
        graph = tracer.trace(root.module, concrete_args=_fixed(type(root.module).forward))
    except Exception as error:
        raise _untraceable(root, tracer.inside, error) from error
    _forget_fixed(graph)
    return graph


class _Tasks(nn.Module):
    def __init__(self, network: MultiTaskModel, tasks: tuple[str, ...], alone: bool) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks
        self.alone = alone

    def forward(self, x: Any) -> Any:
        outputs = self.network(x, tasks=self.tasks)
        return outputs[self.tasks[0]] if self.alone else outputs


def _name(model: nn.Module) -> str:
    """Return the class name of a model, without the prefix of compacted ones."""
    return type(model).__name__.removeprefix("Compact")


class _Tracer(fx.Tracer):
    """Tracer of every module but torch's own, compaction's and the named ones; keeps the path of the running module.

    A compacted network that was pickled is traced anew when it is loaded, by `_Tracer()` under this very name.

    Args:
        leaf_modules: names of modules not to look into.
        strict: refuse to tell the class of a stand-in.
        opens: look into torch's attention and the layers around it.
    """

    proxy_buffer_attributes = True

    def __init__(self, leaf_modules: Iterable[str] = (), *, strict: bool = False, opens: bool = False) -> None:
        super().__init__(autowrap_functions=_CALLS)
        self.leaf_modules = frozenset(leaf_modules)
        self.strict = strict
        self.opens = opens
        self.inside: list[str] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (Constant, Select, SparseLinear)) or module_qualified_name in self.leaf_modules:
            return True
        return _runs_torchs_code(m) and not (self.opens and is_opened(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.inside.append(self.path_of_module(m))
        output = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not after an error: it names where the error was
        return output


class _Proxy(fx.Proxy):
    """Stand-in for a tensor that distinguishes `x += y` from `x = x + y`, which torch.fx does not.

    It has no answer about its class: code that tests whether it is a Tensor would take a wrong branch.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))
        if caller.startswith("torch.") or not getattr(object.__getattribute__(self, "tracer"), "strict", False):
            return _Proxy
        raise CompactionError(
            "Python asks of what class a tensor is. Compact with an example of the inputs (`example_inputs=...`)"
        )

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


def _runs_torchs_code(module: nn.Module) -> bool:
    """Return whether a module's forward is one of torch's, in a class of torch's or of a user's."""
    if isinstance(module, (nn.Sequential, fx.GraphModule)) or "forward" in vars(module):
        return False
    code = [type(module).forward, getattr(type(module), "_conv_forward", type(module).forward)]
    return all(function.__module__.startswith(("torch.nn.", "torch.ao.nn.")) for function in code)


_PLAIN = (type(None), bool, int, float, str)
"""Types whose values a graph can be fixed to."""


def _fixed(forward: Callable[..., Any]) -> dict[str, Any]:
    """Return arguments with a default, to which the graph is fixed: a stand-in cannot answer `if mask is None`."""
    parameters = inspect.signature(forward).parameters.items()
    return {name: p.default for name, p in parameters if isinstance(p.default, _PLAIN)}


def _forget_fixed(graph: fx.Graph) -> None:
    """Remove the fixed arguments, and the checks of their defaults."""
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.args and isinstance(node.args[0], _PLAIN):
            for checked in reversed(_readers(node)):
                graph.erase_node(checked)
            graph.erase_node(node)


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return all nodes that depend on a node, in order."""
    found = {node: None}
    for later in node.graph.nodes:
        if any(read in found for read in later.all_input_nodes):
            found[later] = None
    return list(found)[1:]


def refuse_lazy(model: nn.Module) -> None:
    """Raise a CompactionError if a tensor of a model has no shape yet."""
    for name, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in [*module._parameters.values(), *module._buffers.values()]):
            raise CompactionError(
                f"{name or 'the model'!r} ({type(module).__name__}) does not know its shapes yet. Run the model on one "
                "batch first."
            )


def _check(model: nn.Module, leaf_modules: Collection[str]) -> None:
    """Raise for modules that no graph could be right for, and for unknown names of modules."""
    for name, module in model.named_modules():
        where = f"{name or 'the model'!r} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise CompactionError(f"{where} is scripted, which torch.fx cannot trace. Compact the plain module.")
    refuse_lazy(model)
    known = dict(model.named_modules())
    for name in leaf_modules:
        if name not in known:
            raise CompactionError(f"leaf_modules: {unknown_name('module', name, known)}")


def _untraceable(root: Root, inside: list[str], error: Exception) -> CompactionError:
    """Return an error that names the innermost part that was running."""
    name = inside[-1] if inside else ""
    part = type(root.module.get_submodule(name)).__name__
    where = f"{name.removeprefix(root.prefix)!r} ({part})" if name else f"the model ({root.name})"
    return CompactionError(
        f"torch.fx cannot trace {where}: {error}. A graph cannot hold Python that looks at the values or the shape of "
        "a tensor. Put that code into a function under `torch.fx.wrap`, or name the module in `leaf_modules`, which "
        "keeps it and all that it reads as they are."
    )
