"""Operations of torch in the graph: one name and one form of the arguments for each, and their kinds.

`F.relu(x)`, `torch.relu(input=x)`, `x.relu()` and `x.relu_()` are one operation; so are `x + 1` and `x.add(1)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from sparsemtl.backbones.activations import PLAIN_ACTIVATIONS

_HOMES = (
    "torch",
    "torch._C._special",
    "torch.nn.functional",
    "torch.functional",
    "torch._tensor",
    "torch._C._nn",
    "_operator",
)
"""Modules of functions that are recognised by their names."""

_SYNONYMS = {
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "expit": "sigmoid",
    "iadd": "add",
    "imul": "mul",
    "isub": "sub",
    "itruediv": "div",
    "multiply": "mul",
    "ipow": "pow",
    "negative": "neg",
    "pos": "positive",
    "special_expit": "sigmoid",
    "subtract": "sub",
    "true_divide": "div",
    "truediv": "div",
}
_KEYWORDS = {"dim": ("axis",), "keepdim": ("keepdims",), "shape": ("size",), "size": ("shape", "sizes")}
_FIRST = ("input", "x", "self", "tensor")


def operation(node: fx.Node) -> str:
    """Return the name of the operation of a call, "" if it is no call of torch's."""
    if node.op == "call_method":
        return _plain_name(str(node.target))
    target: Any = node.target
    if node.op != "call_function" or not callable(target):
        return ""
    home = getattr(target, "__module__", None) or "torch"
    return _plain_name(getattr(target, "__name__", "")) if home in _HOMES else ""


def _plain_name(name: str) -> str:
    """Return a name without the underscores of special methods and of operations in place."""
    name = name.strip("_") if name.startswith("__") else name.removesuffix("_")
    return _SYNONYMS.get(name, name)


def operand(node: fx.Node) -> fx.Node | None:
    """Return a node's first argument if it is another node, else None."""
    given = (node.kwargs[name] for name in _FIRST if name in node.kwargs)
    first = node.args[0] if node.args else next(given, None)
    return first if isinstance(first, fx.Node) else None


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """Return an argument of a call, given by position or by any of its names."""
    if len(node.args) > position:
        return node.args[position]
    given = (node.kwargs[each] for each in (name, *_KEYWORDS.get(name, ())) if each in node.kwargs)
    return next(given, default)


def shape_argument(node: fx.Node) -> Sequence[Any]:
    """Return the shape that follows a call's tensor, as numbers or as one sequence."""
    given = node.args[1:] or (argument(node, 1, "shape", ()),)
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        return given[0]
    return given


def named_position(target: Callable[..., Any], name: str) -> int | None:
    """Return the position of a function's argument, None if there is no such argument or no signature."""
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index(name) if name in names else None


ACTIVATIONS: tuple[type[nn.Module], ...] = (*PLAIN_ACTIVATIONS, nn.Threshold)
"""Layers without parameters that map every number for itself."""

_ACTIVATIONS = (
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu relu6 selu silu sigmoid "
    "softplus softshrink softsign tanh tanhshrink threshold"
)
_UNARY = (
    "abs ceil clamp clamp_max clamp_min clone contiguous cos detach erf exp expm1 floor log log1p neg "
    "reciprocal round rsqrt sign sin sqrt square"
)
_BINARY = "add sub rsub mul div pow maximum minimum"

ELEMENTWISE = frozenset(f"{_ACTIVATIONS} {_UNARY} {_BINARY}".split())
"""Operations that map numbers at one place to a number at that place."""

IDENTITIES: tuple[type[nn.Module], ...] = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
    nn.Identity,
)
"""Layers that give back what they read in eval mode."""

UNCHANGED = frozenset(["positive", "requires_grad"])
"""Operations that return what they read, where no gradient is recorded."""

DROPOUTS = frozenset(["alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
"""Operations that do if they are called with `training=False`."""

CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4,
    nn.ConvTranspose3d: 5,
}
"""Class -> axes of the batches that it reads."""

NORMS: dict[type[nn.Module], int | None] = {
    nn.BatchNorm1d: None,
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.SyncBatchNorm: None,
}
"""Class -> axes of the batches that it reads; None if it reads batches of several kinds."""


INSTANCE_NORMS: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}
"""Class -> axes of the batches that it reads."""


def torch_class(module: nn.Module | None) -> type[nn.Module]:
    """Return the class of torch's whose forward a module runs; the module's own class if there is none."""
    own = type(module) if module is not None else nn.Module
    kinds = (kind for kind in own.__mro__ if kind.__module__.startswith("torch.") and issubclass(kind, nn.Module))
    return next((kind for kind in kinds if kind.forward is own.forward), own)


def is_elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether a node maps numbers at one position to a number at that position."""
    return torch_class(module) in ACTIVATIONS if node.op == "call_module" else operation(node) in ELEMENTWISE
