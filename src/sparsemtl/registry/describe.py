"""Annotations in words, as errors, `sparsemtl list` and the documentation print them."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen


def describe(hint: Any) -> str:
    """Return an annotation in words: "a float in (0, 1]", "one of 'forward', 'gradient'"."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *metadata = get_args(hint)
        if MinLen(1) in metadata:
            return describe(base).replace("a ", "a non-empty ", 1)
        return f"{describe(base)} {_range(list(_bounds(metadata)))}".rstrip()
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    if origin in (Union, types.UnionType):
        return _either([describe(option) for option in _options(hint)])
    if hint is None or hint is type(None):
        return "None"
    if origin in (Sequence, list):
        return _holding("a list" if origin is list else "a sequence", "of", get_args(hint)[0])
    if origin in (Mapping, dict):
        return _holding("a mapping", "to", get_args(hint)[1])
    simple = {float: "a float", int: "an int", bool: "a bool", str: "a string", Any: "any value"}
    return simple.get(hint) or str(getattr(hint, "__name__", str(hint).replace("typing.", "")))


def _options(hint: Any) -> list[Any]:
    """Return the alternatives of a union without classes, which only Python can give and the meaning names."""
    return [option for option in get_args(hint) if get_origin(option) is not type]


def _bounds(metadata: Sequence[Any]) -> Iterator[Any]:
    for constraint in metadata:
        if isinstance(constraint, Interval):
            yield from constraint
        elif isinstance(constraint, (Gt, Ge, Lt, Le)):
            yield constraint


def _range(bounds: Sequence[Any]) -> str:
    if not bounds:
        return ""
    low = next((f"({b.gt}" if isinstance(b, Gt) else f"[{b.ge}" for b in bounds if isinstance(b, (Gt, Ge))), "(-inf")
    high = next((f"{b.lt})" if isinstance(b, Lt) else f"{b.le}]" for b in bounds if isinstance(b, (Lt, Le))), "inf)")
    return f"in {low}, {high}"


def _either(options: Sequence[str]) -> str:
    """Join alternatives, with commas where one has alternatives of its own: "a list of ints or None, or None"."""
    if any(" or " in option for option in options):
        return f"{', '.join(options[:-1])}, or {options[-1]}"
    return " or ".join(options)


def _holding(container: str, preposition: str, hint: Any) -> str:
    """Return a container with the type of its items, unless that is Any."""
    return container if hint is Any else f"{container} {preposition} {_several(hint)}"


def _several(hint: Any) -> str:
    """Return the plural: "ints in [1, inf)" for "an int in [1, inf)"."""
    if get_origin(hint) in (Union, types.UnionType):
        return _either([_several(option) for option in _options(hint)])
    if hint is None or hint is type(None):
        return "None"
    if get_origin(hint) is Literal:
        return "any of" + describe(hint).removeprefix("one of")
    noun, _, rest = describe(hint).removeprefix("a ").removeprefix("an ").partition(" ")
    return f"{noun}s {rest}".rstrip()
