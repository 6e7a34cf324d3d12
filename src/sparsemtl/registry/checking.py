"""The check of values against annotations, by pydantic: of arguments given in Python and of values in YAML alike."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge
from pydantic import AfterValidator, BeforeValidator, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, PydanticOmit, core_schema

from sparsemtl.errors import ParameterError
from sparsemtl.registry.describe import describe

STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
"""Configuration of every pydantic model and adapter: nothing is converted, numbers are finite."""
BEYOND_LIMIT = "beyond_limit"
"""Pydantic type of the error of a whole number that PyTorch cannot count with."""
EXPLAINED = "explained"
"""Pydantic type of errors whose message is complete."""


def fits(value: object, hint: Any) -> bool:
    """Return whether a value satisfies an annotation; objects of classes that YAML has not pass without a check."""
    return not _issues(value, hint)


def check_value(subject: str, value: object, hint: Any) -> None:
    """Raise if a value does not satisfy an annotation.

    Args:
        subject: beginning of the message, such as "The 'keep' parameter of FisherSharing".
        value: value to check.
        hint: annotation, with constraints as `Annotated` metadata.

    Raises:
        ParameterError: with the subject, what was expected and what was found.
    """
    if issues := _issues(value, hint):
        raise ParameterError(f"{subject} must be {describe(hint)}. Got {value!r} instead.{advice_on(issues, hint)}")


def advice_on(issues: Sequence[Mapping[str, Any]], hint: Any) -> str:
    """Return a sentence about a refused value beyond its annotation: its limit, or the nearest option.

    Args:
        issues: pydantic's errors.
        hint: annotation that the value does not satisfy.
    """
    for issue in issues:
        if issue["type"] in (BEYOND_LIMIT, EXPLAINED):
            return f" {issue['msg']}"
        if issue["type"] == "finite_number":
            return " Numbers are finite."
        if issue["type"] == "literal_error":
            near = get_close_matches(str(issue["input"]), _options_in(hint), n=1, cutoff=0.5)
            return f" Did you mean {near[0]!r}?" if near else ""
    return ""


def _options_in(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [option for option in get_args(hint) if isinstance(option, str)]
    return [option for part in get_args(hint) for option in _options_in(part)]


def _issues(value: object, hint: Any) -> Sequence[Mapping[str, Any]]:
    try:
        _adapter(hint).validate_python(value)
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False)
    return ()


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(checkable(hint), config=STRICT)


def checkable(hint: Any) -> Any:
    """Return an annotation as pydantic is to check it.

    Numbers, sequences and mappings of other libraries (NumPy arrays, a `ModuleDict`) pass like Python's own. Whole
    numbers are below 2^63, as PyTorch's are, sizes (`Count`) below 2^31. Objects of other classes are refused in YAML
    and pass in Python, where the constructor has the better message.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, *metadata = arguments
        if base is int:
            return Annotated[(int, *metadata, _AS_INT, _below(31 if Ge(1) in metadata else 63))]
        return Annotated[(checkable(base), *metadata)]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(checkable, arguments))]  # noqa: UP007
    if origin in (Sequence, list):
        items = origin[checkable(arguments[0])]
        return items if origin is list else Annotated[items, _AS_LIST]
    if origin in (Mapping, dict):
        items = origin[arguments[0], checkable(arguments[1])]
        return items if origin is dict else Annotated[items, _AS_DICT]
    if hint is int:
        return Annotated[int, _AS_INT, _below(63)]
    if hint in (None, type(None), Any, bool, float, str, Path) or origin is Literal:
        return hint
    return Annotated[Any, _Class(arguments[0]) if origin is type else _InPython(hint)]


@functools.cache
def _below(power: int) -> AfterValidator:
    def check(value: int) -> int:
        if value >= 2**power:
            raise PydanticCustomError(BEYOND_LIMIT, f"Such numbers are below 2^{power}.")
        return value

    return AfterValidator(check)


def _as_list(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's arrays, tensors
        return value.tolist()
    listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return list(value) if listed and not isinstance(value, (str, bytes, Mapping)) else value


def _as_dict(value: Any) -> Any:
    return dict(value.items()) if hasattr(value, "keys") and hasattr(value, "items") else value


def _as_int(value: Any) -> Any:
    return value if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


_AS_INT, _AS_LIST, _AS_DICT = BeforeValidator(_as_int), BeforeValidator(_as_list), BeforeValidator(_as_dict)


@dataclass(frozen=True)
class _InPython:
    """Schema of objects that only Python can give."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if self.kind is object:
            return core_schema.any_schema()
        is_class = isinstance(self.kind, type) and get_origin(self.kind) is None  # in Python 3.10, list[int] is a type
        refused = core_schema.is_instance_schema(self.kind if is_class else Callable)
        return core_schema.json_or_python_schema(json_schema=refused, python_schema=core_schema.any_schema())


@dataclass(frozen=True)
class _Class:
    """Schema of subclasses of a class, which only Python can give."""

    base: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        refused = core_schema.is_subclass_schema(self.base)
        return core_schema.json_or_python_schema(json_schema=refused, python_schema=core_schema.any_schema())

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> Any:
        raise PydanticOmit
