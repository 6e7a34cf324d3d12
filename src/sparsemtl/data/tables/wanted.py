"""Targets as a configuration writes them: column -> kind, or a mapping of `kind` and what is said of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sparsemtl.data.tables.reading import whole_number
from sparsemtl.data.tables.targets import Above, Classes, Equals, Scale, Target, Value
from sparsemtl.errors import ParameterError, unknown_name
from sparsemtl.registry.checking import check_value
from sparsemtl.registry.parameters import NonNegative, Positive, Share
from sparsemtl.tasks import Regression

KINDS: dict[str, dict[str, Any]] = {
    "classification": {
        "column": str,
        "classes": Sequence[str],
        "above": float,
        "equals": Any,
        "label_smoothing": Share,
        "weight": NonNegative,
    },
    "regression": {
        "column": str,
        "scale": Scale | Positive,
        "criterion": Literal["mse", "l1", "huber"],
        "weight": NonNegative,
    },
}
"""Kind of a target -> what may be said of it."""
_OF_TASKS = ("label_smoothing", "criterion", "weight")


def wanted_targets(targets: Mapping[str, Any]) -> tuple[Target, ...]:
    """Targets as they are written in a configuration: column -> kind, or a mapping of `kind` and what is said of it.

    Raises:
        ParameterError: naming the target, what was expected and what was found.
    """
    if not isinstance(targets, Mapping) or not targets:
        raise ParameterError(f"targets: expected a mapping of columns to kinds, got {targets!r}.")
    made = [_target(str(key), said) for key, said in targets.items()]
    counts = Counter(target.name for target in made)
    for target in made:
        if counts[target.name] > 1:
            raise ParameterError(f"targets: two tasks would be named {target.name!r}. Name one, and say its `column`.")
    return tuple(made)


def _target(key: str, said: Any) -> Target:
    options = dict(said) if isinstance(said, Mapping) else {"kind": said}
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ParameterError(f"targets.{key}: {unknown_name('kind', kind, KINDS)}")
    for option, value in options.items():
        if option not in KINDS[kind]:
            raise ParameterError(f"targets.{key}: {unknown_name(f'{kind} option', option, KINDS[kind])}")
        check_value(f"targets.{key}.{option}", value, KINDS[kind][option])
    column = options.pop("column", key)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", key).strip("-")
    own = {option: options.pop(option) for option in _OF_TASKS if option in options}
    target = _value(name, column, own, **options) if kind == "regression" else _classes(name, column, own, **options)
    _check_name(key, target)
    return target


def _value(name: str, column: str, own: Mapping[str, Any], *, scale: Any = None) -> Target:
    if isinstance(scale, (int, float)):
        return Value(name, column, factor=float(scale), options=own)
    return Value(name, column, scale=scale, options=own)


def _classes(name: str, column: str, own: Mapping[str, Any], **options: Any) -> Target:
    if len(options) > 1:
        raise ParameterError(f"targets.{name}: only one of {', '.join(options)} can be said.")
    if "above" in options:
        return Above(name, column, limit=float(options["above"]), options=own)
    if "equals" in options:
        return Equals(name, column, value=whole_number(str(options["equals"])), options=own)
    classes = tuple(whole_number(str(name)) for name in options.get("classes", ()))
    if len(set(classes)) < len(classes) or len(classes) == 1:
        raise ParameterError(f"targets.{name}: `classes` must be at least two different ones, got {list(classes)}.")
    return Classes(name, column, classes=classes, options=own)


def _check_name(key: str, target: Target) -> None:
    """Raise now if the task cannot have its name."""
    try:
        Regression(target.name)
    except ParameterError as error:
        raise ParameterError(
            f"targets.{key}: {error} Here: `my-name: {{column: {target.column!r}, kind: ...}}`."
        ) from None
