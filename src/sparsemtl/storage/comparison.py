"""Differences between two nests of plain values, such as configurations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two mappings: "training.epochs is 2 there and 3 here"."""
    before, after = dict(leaves(there)), dict(leaves(here))
    for key in dict.fromkeys([*before, *after]):
        if key not in after:
            yield f"{key} is {shown(before[key])} there and missing here"
        elif key not in before:
            yield f"{key} is missing there and {shown(after[key])} here"
        elif before[key] != after[key]:
            yield f"{key} is {shown(before[key])} there and {shown(after[key])} here"


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every value in a nest of mappings; an empty mapping counts as a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """Return the text of a value in messages."""
    return json.dumps(value, ensure_ascii=False, default=str)


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
