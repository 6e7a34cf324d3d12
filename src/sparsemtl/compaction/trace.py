"""From a module to the graph of what it computes."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparsemtl.architectures.gates import mixed
from sparsemtl.backbones.segnet import unpooled
from sparsemtl.backbones.shapes import check_sides
from sparsemtl.compaction.checks import check_axes
from sparsemtl.compaction.network import Network
from sparsemtl.compaction.select import Select
from sparsemtl.errors import CompactionError, unknown_name
from sparsemtl.heads.linear import pooled
from sparsemtl.models import MultiTaskModel

CALLS = (pooled, unpooled, mixed, check_sides, check_axes)
"""Functions that stay one node each."""


def traced(model: nn.Module, whole: Collection[str] = ()) -> Network:
    """The graph of a module in eval mode.

    Args:
        model: what to trace. It is changed, and shares its weights with the result.
        whole: names of modules that are not looked into.

    Raises:
        CompactionError: if torch.fx cannot follow what a module does, saying which.
    """
    _check(model, whole)
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        raise CompactionError(
            f"{type(model).__name__} has hooks, or a forward of its own beside its class's, that a graph would miss. "
            "Remove them, or put the module inside another one."
        )
    model.eval()
    _plain_weights(model)
    if isinstance(model, fx.GraphModule):
        model.graph._tracer_cls = _Tracer  # what is pickled is traced anew, and only ours knows our functions
        return Network.of(model, model.graph, prefix="", name=_name(model), whole=whole)
    return _trace(model, whole, prefix="", name=_name(model))


def traced_tasks(model: MultiTaskModel, tasks: tuple[str, ...], *, alone: bool, whole: Collection[str]) -> Network:
    """The graph of a multi-task model that computes some of its tasks.

    Args:
        model: see `traced`.
        tasks: names of the tasks.
        alone: give the output of the only task itself in place of a dict.
        whole: see `traced`.
    """
    _check(model, whole)
    root = _Tasks(model, tasks, alone).eval()
    _plain_weights(root)
    return _trace(root, whole, prefix="network.", name=_name(model))


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
    """The class of a model, before it was compacted if it was."""
    return type(model).__name__.removeprefix("Compact")


def _trace(root: nn.Module, whole: Collection[str], *, prefix: str, name: str) -> Network:
    tracer = _Tracer({f"{prefix}{each}" for each in whole})
    try:
        graph = tracer.trace(root, concrete_args=_fixed(type(root).forward))
    except Exception as error:
        inside = tracer.inside[-1] if tracer.inside else ""
        where = f"{inside.removeprefix(prefix)!r} ({type(root.get_submodule(inside)).__name__})"
        raise _untraceable(where if inside else f"the model ({name})", error) from error
    _forget_fixed(graph)
    return Network.of(root, graph, prefix=prefix, name=name, whole=whole)


class _Tracer(fx.Tracer):
    """Looks into every module but torch's own, those named and our `Select`; knows where it is.

    A compacted network that was pickled is traced anew when it is loaded, by `_Tracer()` under this very name.

    Args:
        whole: names of modules not to look into.
    """

    def __init__(self, whole: Collection[str] = ()) -> None:
        super().__init__(autowrap_functions=CALLS)
        self.whole = whole
        self.inside: list[str] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Select) or module_qualified_name in self.whole or _runs_torchs_code(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.inside.append(self.path_of_module(m))
        output = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not after an error: it names where the error was
        return output


class _Proxy(fx.Proxy):
    """Stands for a tensor; knows `x += y` from `x = x + y`, which torch.fx takes for the same."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


def _runs_torchs_code(module: nn.Module) -> bool:
    """Whether a module's forward is one of torch's, in a class of torch's or of a user's."""
    if isinstance(module, (nn.Sequential, fx.GraphModule)) or "forward" in vars(module):
        return False
    code = [type(module).forward, getattr(type(module), "_conv_forward", type(module).forward)]
    return all(function.__module__.startswith(("torch.nn.", "torch.ao.nn.")) for function in code)


PLAIN = (type(None), bool, int, float, str)
"""Types whose values a graph can be fixed to."""


def _fixed(forward: Callable[..., Any]) -> dict[str, Any]:
    """Arguments with a default: the graph is that of the default, `if mask is None` cannot be asked of it."""
    parameters = inspect.signature(forward).parameters.items()
    return {name: p.default for name, p in parameters if isinstance(p.default, PLAIN)}


def _forget_fixed(graph: fx.Graph) -> None:
    """Take the fixed arguments away, and the checks that they have their defaults."""
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.args and isinstance(node.args[0], PLAIN):
            for checked in reversed(_readers(node)):
                graph.erase_node(checked)
            graph.erase_node(node)


def _readers(node: fx.Node) -> list[fx.Node]:
    """All nodes that depend on a node, in order."""
    found = {node: None}
    for later in node.graph.nodes:
        if any(read in found for read in later.all_input_nodes):
            found[later] = None
    return list(found)[1:]


def _plain_weights(model: nn.Module) -> None:
    """Put the values of parametrized weights in place of their parametrizations.

    torch's own function for that changes the module's class, which copies of the module have in common.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach() for name in module._modules["parametrizations"]}  # type: ignore[union-attr]
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module._modules["parametrizations"]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))


def _check(model: nn.Module, whole: Collection[str]) -> None:
    """Raise on what no graph could be right for, and on names of modules that are not there."""
    for name, module in model.named_modules():
        where = f"{name or 'the model'!r} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise CompactionError(f"{where} is scripted, which torch.fx cannot trace. Compact the plain module.")
        if any(is_lazy(tensor) for tensor in [*module._parameters.values(), *module._buffers.values()]):
            raise CompactionError(f"{where} does not know its shapes yet. Run the model on one batch first.")
    known = dict(model.named_modules())
    for name in whole:
        if name not in known:
            raise CompactionError(f"whole: {unknown_name('module', name, known)}")


def _untraceable(where: str, error: Exception) -> CompactionError:
    return CompactionError(
        f"torch.fx cannot trace {where}: {error}. A graph cannot hold Python that looks at the values or the shape of "
        "a tensor. Put that code into a function under `torch.fx.wrap`, or name the module in `whole`, which keeps "
        "it and all that it reads as they are."
    )
