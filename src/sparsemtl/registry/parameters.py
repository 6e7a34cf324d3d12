"""Constraints on parameters, written once in the annotations of a constructor.

A constructor says `keep: Fraction = 0.3`; `validated` checks the value when it is called from Python, the
configuration builds its schema from the same annotation, and `sparsemtl list` prints it.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt

from sparsemtl.errors import ParameterError

Fraction = Annotated[float, Interval(gt=0, le=1)]
"""A fraction in (0, 1]."""
Share = Annotated[float, Interval(ge=0, lt=1)]
"""A fraction in [0, 1)."""
Count = Annotated[int, Ge(1)]
"""A whole number of at least one."""
Natural = Annotated[int, Ge(0)]
"""A whole number of at least zero."""
Positive = Annotated[float, Gt(0)]
"""A number above zero."""
NonNegative = Annotated[float, Ge(0)]
"""A number of at least zero."""

P = ParamSpec("P")
R = TypeVar("R")


def validated(init: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a constructor against the constraints in its annotations.

    Raises:
        ParameterError: naming the class, the parameter, what was expected and what was found.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        hints = _hints(init)
        owner = type(args[0]).__name__
        for name, value in bound.arguments.items():
            if name not in hints:
                continue
            limit = beyond_limits(value, hints[name]) if fits(value, hints[name]) else ""
            if limit or not fits(value, hints[name]):
                raise ParameterError(
                    f"The {name!r} parameter of {owner} must be {describe(hints[name])}. Got {value!r} instead.{limit}"
                )
        return init(*args, **kwargs)

    return wrapper


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by parameter; one that names a type imported for type checkers only counts as Any."""
    names = getattr(inspect.unwrap(function), "__globals__", {})
    hints: dict[str, Any] = {}
    for name, annotation in inspect.get_annotations(function).items():
        probe = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints.update(get_type_hints(probe, names, include_extras=True))
        except NameError:
            hints[name] = Any
    return hints


def fits(value: object, hint: Any) -> bool:
    """Tell whether a value satisfies an annotation; annotations that cannot be checked at run time pass."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *constraints = get_args(hint)
        return fits(value, base) and all(_satisfies(value, bound) for bound in _bounds(constraints))
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin is Sequence:
        listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        return listed and not isinstance(value, (str, bytes, Mapping))
    return True


def _bounds(constraints: list[Any]) -> Iterator[Any]:
    for constraint in constraints:
        if isinstance(constraint, Interval):
            yield from constraint
        elif isinstance(constraint, (Gt, Ge, Lt, Le)):
            yield constraint


def _satisfies(value: Any, bound: Any) -> bool:
    match bound:
        case Gt(gt=limit):
            return bool(value > limit)
        case Ge(ge=limit):
            return bool(value >= limit)
        case Lt(lt=limit):
            return bool(value < limit)
        case Le(le=limit):
            return bool(value <= limit)
    return True


def beyond_limits(value: object, hint: Any) -> str:
    """Return a sentence about the computer's limit that a value exceeds, "" if it exceeds none.

    Numbers are finite, sizes (`Count`) below 2^31, other whole numbers below 2^63, with which PyTorch counts.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return next((beyond_limits(value, option) for option in arguments if fits(value, option)), "")
    if origin in (Sequence, list) and isinstance(value, (list, tuple)):
        return next(filter(None, (beyond_limits(item, arguments[0]) for item in value)), "")
    if origin in (Mapping, dict) and isinstance(value, Mapping):
        return next(filter(None, (beyond_limits(item, arguments[1]) for item in value.values())), "")
    base, bounds = (arguments[0], list(_bounds(list(arguments[1:])))) if origin is Annotated else (hint, [])
    if base is float and isinstance(value, float) and not math.isfinite(value):
        return " Numbers are finite."
    if base is int and isinstance(value, int):
        power = 31 if Ge(1) in bounds else 63
        return f" Such numbers are below 2^{power}." if value >= 2**power else ""
    return ""


def describe(hint: Any) -> str:
    """Put an annotation into words: "a float in (0, 1]", "one of 'forward', 'gradient'"."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *constraints = get_args(hint)
        return f"{describe(base)} {_range(list(_bounds(constraints)))}".rstrip()
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    if origin in (Union, types.UnionType):
        return _either([describe(option) for option in get_args(hint)])
    if hint is None or hint is type(None):
        return "None"
    if origin in (Sequence, list):
        return _holding("a list" if origin is list else "a sequence", "of", get_args(hint)[0])
    if origin in (Mapping, dict):
        return _holding("a mapping", "to", get_args(hint)[1])
    simple = {float: "a float", int: "an int", bool: "a bool", str: "a string", Any: "any value"}
    return simple.get(hint) or str(getattr(hint, "__name__", str(hint).replace("typing.", "")))


def _either(options: Sequence[str]) -> str:
    """Join alternatives, with commas where one has alternatives of its own: "a list of ints or None, or None"."""
    if any(" or " in option for option in options):
        return f"{', '.join(options[:-1])}, or {options[-1]}"
    return " or ".join(options)


def _holding(container: str, preposition: str, hint: Any) -> str:
    """A container with what it holds, if that is anything in particular."""
    return container if hint is Any else f"{container} {preposition} {_several(hint)}"


def _several(hint: Any) -> str:
    """Turn what would be "an int in [1, inf)" into "ints in [1, inf)"."""
    if get_origin(hint) in (Union, types.UnionType):
        return _either([_several(option) for option in get_args(hint)])
    if hint is None or hint is type(None):
        return "None"
    if get_origin(hint) is Literal:
        return "any of" + describe(hint).removeprefix("one of")
    noun, _, rest = describe(hint).removeprefix("a ").removeprefix("an ").partition(" ")
    return f"{noun}s {rest}".rstrip()


def _range(bounds: list[Any]) -> str:
    if not bounds:
        return ""
    low = next((f"({b.gt}" if isinstance(b, Gt) else f"[{b.ge}" for b in bounds if isinstance(b, (Gt, Ge))), "(-inf")
    high = next((f"{b.lt})" if isinstance(b, Lt) else f"{b.le}]" for b in bounds if isinstance(b, (Lt, Le))), "inf)")
    return f"in {low}, {high}"


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a registered class, as `sparsemtl list` and the documentation show it."""

    name: str
    kind: str
    default: Any
    required: bool
    about: str = ""


def parameters_of(target: Callable[..., Any]) -> list[ParameterInfo]:
    """List the parameters of a class or function that a configuration can set."""
    about = documented(target)
    return [
        ParameterInfo(
            name,
            describe(hint),
            None if parameter.default is inspect.Parameter.empty else parameter.default,
            parameter.default is inspect.Parameter.empty,
            about.get(name, ""),
        )
        for name, parameter, hint in configurable(target)
    ]


def configurable(target: Callable[..., Any]) -> Iterator[tuple[str, inspect.Parameter, Any]]:
    """Yield (name, parameter, annotation) of every keyword that a configuration can set.

    These are the keyword-only parameters; positional ones (the model, the optimized parameters) are given by the
    library. What Python must spell `lambda_` is `lambda` here.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints = _hints(function)
    parameters = inspect.signature(target).parameters
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            yield name.removesuffix("_"), parameter, hints.get(name, Any)


def documented(target: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> what its docstring says; where it refers to a base class or another class, what that one says."""
    owners = target.__mro__[::-1] if inspect.isclass(target) else (*_referred(target), target)
    texts: dict[str, str] = {}
    for owner in owners:
        for names, lines in _ENTRY.findall(_arguments(inspect.cleandoc(owner.__doc__ or ""))):
            text = " ".join(lines.split())
            for name in (word.removesuffix("_") for word in names.split(", ")):
                if not (name in texts and text.startswith("see `")):
                    texts[name] = text
    return texts


def _referred(function: Callable[..., Any]) -> Iterator[type]:
    """The class of the function's module whose arguments are the function's: "Arguments are those of `ResNet`"."""
    for name in re.findall(r"Arguments are those of `(\w+)`", function.__doc__ or ""):
        owner = getattr(inspect.getmodule(function), name, None)
        if inspect.isclass(owner):
            yield owner


_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", re.MULTILINE)
"""`name: text` or `one, other: text`, and its lines that are indented further."""


def _arguments(doc: str) -> str:
    """The section `Args:` of a docstring."""
    return doc.partition("\nArgs:\n")[2].partition("\n\n")[0]
