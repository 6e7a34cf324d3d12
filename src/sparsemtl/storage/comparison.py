"""Differences between two nests of plain values, such as configurations."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

MISSING: Any = object()
"""Value of a key that a mapping lacks."""


def differences(there: Mapping[str, Any], here: Mapping[str, Any], free: Collection[str] = ()) -> Iterator[str]:
    """Yield what differs between two mappings: "training.epochs is 2 there and 3 here"; keys of `free` may differ."""
    for place, before, after in (change for change in changes(there, here) if change[0] not in free):
        yield f"{place} is {shown(before)} there and {shown(after)} here"


def changes(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, value there, value here) of every value that differs; a key may be `MISSING` on a side."""
    for key in dict.fromkeys([*there, *here]):
        before, after = there.get(key, MISSING), here.get(key, MISSING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changes(before, after, f"{prefix}{key}.")
        elif before is MISSING or after is MISSING or before != after:
            yield f"{prefix}{key}", before, after


def shown(value: Any) -> str:
    """Return the text of a value in messages."""
    return "missing" if value is MISSING else json.dumps(value, ensure_ascii=False, default=str)


def plain(value: Any) -> Any:
    """Return a value in JSON's types: mappings with text as keys, lists, numbers, text; any other value as its text.

    A function becomes its name: its text has an address, which differs from process to process.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)  # NumPy's numbers, and torch's
