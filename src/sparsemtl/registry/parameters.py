'''Parameters of constructors, documented where they stand.

A constructor says the type, the constraint, the meaning and the default of a parameter in one place. Its check, the
schema of configurations, `sparsemtl list` and the documentation read them there:

    >>> class Prune:
    ...     """Prune by magnitude."""
    ...
    ...     @validated
    ...     def __init__(self, *, keep: Annotated[Fraction, Doc("Fraction of the weights to keep.")] = 0.3) -> None:
    ...         self.keep = keep
    >>> parameters_of(Prune)["keep"].kind
    'a float in (0, 1]'
    >>> Prune(keep=1.5)
    Traceback (most recent call last):
    sparsemtl.errors.ParameterError: The 'keep' parameter of Prune must be a float in (0, 1]. Got 1.5 instead.

Parameters that several constructors have in common stand in a `TypedDict` (PEP 692), each with its `Default`; one
without is required. `validated` fills the defaults in, so that the constructor finds every key:

    >>> from typing import TypedDict
    >>> class ScheduleOptions(TypedDict, total=False):
    ...     warmup: Annotated[Natural, Default(0), Doc("Dense epochs at the beginning.")]
    >>> class PruneLater(Prune):
    ...     """Prune by magnitude after some epochs."""
    ...
    ...     @validated
    ...     def __init__(
    ...         self,
    ...         *,
    ...         keep: Annotated[Fraction, Doc("Fraction of the weights to keep.")] = 0.3,
    ...         **schedule: Unpack[ScheduleOptions],
    ...     ) -> None:
    ...         super().__init__(keep=keep)
    ...         self.warmup = schedule["warmup"]
    >>> PruneLater().warmup
    0
    >>> [(p.name, p.default, p.meaning) for p in parameters_of(PruneLater).values()]
    [('keep', 0.3, 'Fraction of the weights to keep.'), ('warmup', 0, 'Dense epochs at the beginning.')]
'''

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import typing_extensions
from annotated_types import Ge, Gt, Interval, MinLen
from typing_extensions import Doc, Unpack

from sparsemtl.registry.checking import check_value
from sparsemtl.registry.describe import describe

Fraction = Annotated[float, Interval(gt=0, le=1)]
"""Fraction in (0, 1]."""
Share = Annotated[float, Interval(ge=0, lt=1)]
"""Fraction in [0, 1)."""
Count = Annotated[int, Ge(1)]
"""Whole number of at least one."""
Natural = Annotated[int, Ge(0)]
"""Whole number of at least zero."""
Positive = Annotated[float, Gt(0)]
"""Number above zero."""
NonNegative = Annotated[float, Ge(0)]
"""Number of at least zero."""
Counts = Annotated[Sequence[Count], MinLen(1)]
"""One or more whole numbers of at least one."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Default:
    """Default of a key of a `TypedDict`, in the metadata of its annotation."""

    value: Any


@dataclass(frozen=True)
class Parameter:
    """Parameter that a configuration can set.

    Attributes:
        name: name in configurations. The Python keyword `lambda_` is `lambda` there.
        hint: annotation with its constraints.
        default: default value, `...` if the parameter is required.
        meaning: text of its `Doc`.
        keyword: name in Python.
    """

    name: str
    hint: Any
    default: Any = ...
    meaning: str = ""
    keyword: str = ""

    @property
    def required(self) -> bool:
        """Absence of a default."""
        return self.default is ...

    @property
    def kind(self) -> str:
        """Type and range in words: "a float in (0, 1]"."""
        return describe(self.hint)


def parameters_of(target: Callable[..., Any]) -> dict[str, Parameter]:
    """Return name -> parameter of a class, a function or a `TypedDict`, as far as a configuration can set them.

    These are the keyword-only parameters. Positional ones (the model, the optimized parameters) are given by the
    library.
    """
    return {parameter.name: parameter for parameter in _parameters(target)}


@functools.cache
def _parameters(target: Callable[..., Any]) -> tuple[Parameter, ...]:
    return tuple(_keywords(target))


def validated(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a constructor or a function against its annotations at every call.

    Raises:
        ParameterError: naming the class or function, the parameter, what was expected and what was found.
    """
    signature = inspect.signature(function)
    method = function.__name__ == "__init__"

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        owner = type(args[0]).__name__ if method else function.__name__
        hints, options = hints_of(function), _options(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{owner}(): {error}{_nearest(kwargs, signature.parameters)}") from None
        for name, value in bound.arguments.items():
            if name in hints and not _is_unpack(hints[name]):
                check_value(f"The {name!r} parameter of {owner}", value, hints[name])
        if options is not None:
            kwargs.update(_completed(kwargs, options, signature.parameters, owner))
        return function(*args, **kwargs)

    return wrapper


def _completed(
    given: Mapping[str, Any], options: Mapping[str, Parameter], others: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    """Return the values of all options: those given, after a check, and the defaults of the others."""
    for name, value in given.items():
        if name in options:
            check_value(f"The {name!r} parameter of {owner}", value, options[name].hint)
        elif name not in others:
            near = _nearest([name], [*options, *others])
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}{near}")
    for name, option in options.items():
        if option.required and name not in given:
            raise TypeError(f"{owner}() missing a required argument: {name!r}")
    return {name: given.get(name, option.default) for name, option in options.items()}


def _nearest(given: Iterable[str], known: Iterable[str]) -> str:
    """Return the question whether the known name nearest to the first unknown one was meant, or ""."""
    names = list(known)
    unknown = next((name for name in given if name not in names), "")
    near = get_close_matches(unknown, names, n=1, cutoff=0.5)
    return f". Did you mean {near[0]!r}?" if near else ""


@functools.cache
def _options(function: Callable[..., Any]) -> dict[str, Parameter] | None:
    """Return keyword -> parameter of the `TypedDict` that a function takes, None if it takes none."""
    unpacked = [hint for hint in hints_of(function).values() if _is_unpack(hint)]
    return {key.keyword: key for key in _keys(get_args(unpacked[0])[0])} if unpacked else None


def _keywords(target: Callable[..., Any]) -> Iterator[Parameter]:
    if typing_extensions.is_typeddict(target):
        yield from _keys(target)
        return
    parameters = inspect.signature(target).parameters
    if not parameters:
        return  # a class without a constructor, whose `object.__init__` has no annotations
    hints = hints_of(target.__init__ if inspect.isclass(target) else target)
    for name, parameter in parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            yield _parameter(name, hint, ... if parameter.default is parameter.empty else parameter.default)
        elif _is_unpack(hint):
            yield from _keys(get_args(hint)[0])


def _keys(options: Any) -> Iterator[Parameter]:
    """Yield the keys of a `TypedDict` as parameters."""
    if not typing_extensions.is_typeddict(options):
        raise TypeError(f"`Unpack` takes a TypedDict, got {options!r}. Is its name imported for type checkers only?")
    for name, hint in hints_of(options).items():
        yield _parameter(name, hint, ...)


def _parameter(keyword: str, hint: Any, default: Any) -> Parameter:
    """Return a parameter with its `Default` and `Doc` taken out of the metadata of its annotation."""
    meaning = ""
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        default = next((entry.value for entry in metadata if isinstance(entry, Default)), default)
        meaning = next((entry.documentation for entry in metadata if isinstance(entry, Doc)), "")
        constraints = [entry for entry in metadata if not isinstance(entry, (Default, Doc))]
        hint = Annotated[(base, *constraints)] if constraints else base
    return Parameter(keyword.removesuffix("_"), hint, default, meaning, keyword)


def _is_unpack(hint: Any) -> bool:
    return get_origin(hint) in (Unpack, getattr(typing, "Unpack", Unpack))


@functools.cache
def hints_of(owner: Any) -> dict[str, Any]:
    """Return name -> annotation of a function or a `TypedDict`."""
    if owner is object.__init__:  # of a class without a constructor
        return {}
    names = getattr(inspect.unwrap(owner), "__globals__", None) or vars(sys.modules[owner.__module__])
    return {name: _evaluated(hint, names) for name, hint in inspect.get_annotations(owner).items()}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """Return an annotation with Any in the place of types that are imported for type checkers only."""
    unknown: dict[str, Any] = {}
    while True:
        probe = types.SimpleNamespace(__annotations__={"hint": annotation})
        try:
            return get_type_hints(probe, names, unknown, include_extras=True)["hint"]
        except NameError as error:
            unknown[str(error.name)] = Any
