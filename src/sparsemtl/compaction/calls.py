"""One name for every operation of torch, however it is written, and its arguments, however they were given.

`F.relu(x)`, `torch.relu(input=x)`, `x.relu()` and `x.relu_()` are one operation; so are `x + 1` and `x.add(1)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

_HOMES = (
    "torch",
    "torch._C._special",
    "torch.nn.functional",
    "torch.functional",
    "torch._tensor",
    "torch._C._nn",
    "_operator",
)
"""Modules of functions whose names say what they do."""

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
    """The name of what a call does, "" if it is no call of torch's."""
    if node.op == "call_method":
        return _plain_name(str(node.target))
    target: Any = node.target
    if node.op != "call_function" or not callable(target):
        return ""
    home = getattr(target, "__module__", None) or "torch"
    return _plain_name(getattr(target, "__name__", "")) if home in _HOMES else ""


def _plain_name(name: str) -> str:
    """Without the underscores of special methods and of operations in place."""
    name = name.strip("_") if name.startswith("__") else name.removesuffix("_")
    return _SYNONYMS.get(name, name)


def operand(node: fx.Node) -> fx.Node | None:
    """A node's first argument, if it is another node."""
    given = (node.kwargs[name] for name in _FIRST if name in node.kwargs)
    first = node.args[0] if node.args else next(given, None)
    return first if isinstance(first, fx.Node) else None


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, wherever it was given and by whichever of its names."""
    if len(node.args) > position:
        return node.args[position]
    given = (node.kwargs[each] for each in (name, *_KEYWORDS.get(name, ())) if each in node.kwargs)
    return next(given, default)


def shape_argument(node: fx.Node) -> Sequence[Any]:
    """A shape that a call was given behind its tensor, as numbers or as one sequence."""
    given = node.args[1:] or (argument(node, 1, "shape", ()),)
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        return given[0]
    return given


def named_position(target: Callable[..., Any], name: str) -> int | None:
    """Return where a function takes an argument without its name, None if it has no such argument or does not tell."""
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None
    return names.index(name) if name in names else None
