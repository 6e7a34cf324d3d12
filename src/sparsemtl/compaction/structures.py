"""Tensors and numbers inside of tuples, lists, mappings and objects: what modules take and give."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def parts(value: Any) -> Iterator[tuple[Callable[[Any, Any], Any], Any, Any]]:
    """What is inside of a container or object: (function, key, part), where `function(value, key)` gives the part."""
    if isinstance(value, (tuple, list)):
        yield from ((operator.getitem, index, part) for index, part in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((operator.getitem, key, value[key]) for key in value)
    elif dataclasses.is_dataclass(value) and not _is_ours(value) and not isinstance(value, type):
        yield from ((getattr, field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif _is_record(value):
        yield from ((getattr, name, part) for name, part in vars(value).items() if isinstance(part, Tensor))


def _is_ours(value: Any) -> bool:
    return type(value).__module__.startswith("sparsemtl.compaction.")


def _is_record(value: Any) -> bool:
    """Return whether a value is an object of a user's that is there for its attributes."""
    home = type(value).__module__
    library = home == "builtins" or home.split(".")[0] in ("torch", "sparsemtl", "numpy")
    return (
        hasattr(value, "__dict__") and not library and not isinstance(value, (type, nn.Module)) and not callable(value)
    )


def leaves(value: Any) -> Iterator[Any]:
    """All that is in a value and no container itself."""
    if isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
        return
    inside = [] if isinstance(value, Tensor) else list(parts(value))
    if not inside:
        yield value
    for _, _, part in inside:
        yield from leaves(part)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a value, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with a function of every leaf in the place of the leaf; what does not change stays itself."""
    if isinstance(value, slice):
        return slice(*(mapped(function, each) for each in (value.start, value.stop, value.step)))
    inside = [] if isinstance(value, Tensor) else list(parts(value))
    if not inside:
        return function(value)
    changed = {key: mapped(function, part) for _, key, part in inside}
    if all(changed[key] is part for _, key, part in inside):
        return value
    return _rebuilt(value, changed)


def _rebuilt(value: Any, changed: dict[Any, Any]) -> Any:
    if isinstance(value, (tuple, list)):
        values = list(changed.values())
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    if isinstance(value, dict):
        made = value.copy()
        made.update(changed)
        return made
    if isinstance(value, Mapping):
        return type(value)(changed)  # type: ignore[call-arg]
    made = copy.copy(value)
    for name, part in changed.items():
        object.__setattr__(made, name, part)
    return made
