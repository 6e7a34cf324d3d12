"""Nests of tensors: inputs of models in any structure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def map_tensors(function: Callable[[Tensor], Any], nest: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """Return a copy of a nest with every tensor replaced by the result of `function`.

    Args:
        function: function of a tensor.
        nest: a tensor; a mapping of any kind (a `BatchEncoding` too), tuple, named tuple, list or dataclass of nests;
            or any other object.
        other: function of any other object, such as a number or a graph; by default such objects stay.
    """

    def inner(part: Any) -> Any:
        return map_tensors(function, part, other)

    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping):
        return _mapping(nest, {key: inner(part) for key, part in nest.items()})
    if isinstance(nest, list):
        return _list(nest, [inner(part) for part in nest])
    if isinstance(nest, tuple) and not isinstance(nest, PackedSequence):
        parts = [inner(part) for part in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    if is_dataclass(nest) and not isinstance(nest, type):
        return _dataclass(nest, {field.name: inner(getattr(nest, field.name)) for field in fields(nest)})
    return nest if other is None else other(nest)


def tensors_in(nest: Any) -> list[Tensor]:
    """Return the tensors of a nest, in the order of `map_tensors`."""
    found: list[Tensor] = []
    map_tensors(found.append, nest)
    return found


def to_device(nest: Any, device: torch.device | str) -> Any:
    """Return a nest with every tensor on a device. Objects of other kinds move by their own `to`, if there is one."""
    if isinstance(nest, Tensor) and nest.device == device:
        return nest

    def moved(part: Any) -> Any:
        return part.to(device) if callable(getattr(part, "to", None)) else part

    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), nest, moved)


def to_dtype(nest: Any, dtype: torch.dtype) -> Any:
    """Return a nest with every floating-point tensor in a dtype; integers, bools and complex numbers stay."""

    def cast(part: Any) -> Any:
        return part.to(dtype) if isinstance(part, PackedSequence) and part.data.is_floating_point() else part

    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, nest, cast)


def _mapping(nest: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    if type(nest) is dict:
        return parts
    if not isinstance(nest, MutableMapping):
        return type(nest)(parts)  # type: ignore[call-arg]
    copied = copy.copy(nest)  # keeps other attributes, such as a default factory
    copied.update(parts)
    return copied


def _list(nest: list[Any], parts: list[Any]) -> list[Any]:
    if type(nest) is list:
        return parts
    copied = copy.copy(nest)
    copied[:] = parts
    return copied


def _dataclass(nest: Any, parts: dict[str, Any]) -> Any:
    copied = copy.copy(nest)
    for name, part in parts.items():
        object.__setattr__(copied, name, part)  # works for frozen ones; `replace` would run `__post_init__` again
    return copied
