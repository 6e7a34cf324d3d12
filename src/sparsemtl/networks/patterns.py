"""Patterns that name parameters: names and globs of parameters and modules, and classes of modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from sparsemtl.errors import ParameterError

Pattern = str | type[nn.Module]
"""A name or a glob of parameters and modules, or a class of modules: `encoder.0`, `*.attention.*`, `nn.Conv2d`, or in
configurations `Conv2d`. A module, by name or class, stands for everything inside it."""

Patterns = Pattern | Sequence[Pattern]
"""One pattern, or several, of which one must match."""


def matches(pattern: Pattern, name: str, around: Sequence[nn.Module]) -> bool:
    """Return whether a pattern names a parameter or a module around it, or the class of such a module.

    Args:
        pattern: the pattern.
        name: name of the parameter.
        around: modules around the parameter.
    """
    if isinstance(pattern, type):
        return any(isinstance(module, pattern) for module in around)
    if any(fnmatchcase(part, pattern) for part in outwards(name)):
        return True
    return any(kind.__name__ == pattern for module in around for kind in type(module).__mro__)


def outwards(name: str) -> Iterator[str]:
    """Yield a name and the names of all modules around it, from the inside."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def parameters_matching(model: nn.Module, pattern: Pattern, option: str) -> list[str]:
    """Return the names of the parameters that a pattern matches.

    Args:
        model: a module.
        pattern: the pattern.
        option: name of the option, for messages.

    Raises:
        ParameterError: if there are none, with the nearest names.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2, bias=False)))
        >>> parameters_matching(model, "*.bias", "only"), parameters_matching(model, "1", "only")
        (['0.bias'], ['1.0.weight'])
        >>> parameters_matching(model, "Linear", "only") == parameters_matching(model, nn.Linear, "only")
        True
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    around = {
        name: [modules[part] for part in outwards(name) if part in modules] for name, _ in model.named_parameters()
    }
    if found := [name for name, inside in around.items() if matches(pattern, name, inside)]:
        return found
    raise no_match(option, pattern, around, f"{type(model).__name__} holds {', '.join(dict(model.named_children()))}.")


def no_match(option: str, pattern: Pattern, around: Mapping[str, Sequence[nn.Module]], known: str) -> ParameterError:
    """Return the error for a pattern that matches nothing, with the nearest names.

    Args:
        option: name of the option.
        pattern: the pattern.
        around: name of every parameter that might be meant -> the modules around it.
        known: last sentence of the message.
    """
    names = dict.fromkeys(part for name in around for part in outwards(name))
    classes = dict.fromkeys(type(module).__name__ for inside in around.values() for module in inside)
    wanted = pattern.__name__ if isinstance(pattern, type) else pattern.strip("*.")
    near = get_close_matches(wanted, [*names, *classes], n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ParameterError(
        f"`{option}`: no parameter, module or class of modules matches {shown(pattern)}.{hint} {known}"
    )


def shown(pattern: Pattern) -> str:
    """Return a pattern as messages write it."""
    return pattern.__name__ if isinstance(pattern, type) else repr(pattern)
