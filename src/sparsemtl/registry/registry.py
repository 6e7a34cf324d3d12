"""Registries: a class in the registry of its axis is at once in configurations, the command line and the docs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from sparsemtl.errors import ConfigError, SparseMTLError, unknown_name
from sparsemtl.registry.parameters import Parameter, parameters_of

T = TypeVar("T")


class Registry(Mapping[str, Callable[..., T]], Generic[T]):
    """Members of one axis by name.

    Args:
        kind: name of the axis in error messages ("sharing method").
        members: name -> class or function. A configuration may set its keyword-only parameters.
        common: a `TypedDict` of keys that a configuration may set beside those of any member, and that the library
            reads itself.
        in_configurations: returns a member's parameter as configurations have it, where that differs from Python.
        aliases: other name -> name of a member.
        find: function that returns further members and aliases, called once, when they are first needed; a member or
            alias above has priority.
        reasons: name that users look for -> why there is no such member.
    """

    def __init__(
        self,
        kind: str,
        members: Mapping[str, Callable[..., T]],
        common: Any = None,
        *,
        in_configurations: Callable[[Parameter], Parameter] = lambda parameter: parameter,
        aliases: Mapping[str, str] | None = None,
        find: Callable[[], tuple[Mapping[str, Callable[..., T]], Mapping[str, str]]] | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self._members = dict(members)
        self._common = {} if common is None else parameters_of(common)
        self._in_configurations = in_configurations
        self._aliases = dict(aliases or {})
        self._find = find
        self._reasons = dict(reasons or {})

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._members:
            self._complete()
        try:
            return self._members[self.resolve(name)]
        except KeyError:
            if name in self._reasons:
                raise ConfigError(f"there is no {self.kind} {name!r}. {self._reasons[name]}") from None
            raise ConfigError(unknown_name(self.kind, name, self._members)) from None

    def __setitem__(self, name: str, member: Callable[..., T]) -> None:
        """Add a member, from this package or another one."""
        self._members[name] = member
        self._aliases.pop(name, None)

    def __contains__(self, name: object) -> bool:
        if name not in self._members:
            self._complete()
        return name in self._members or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(self._members)

    def __len__(self) -> int:
        self._complete()
        return len(self._members)

    def resolve(self, name: str) -> str:
        """Return the name of the member that an alias stands for; any other name is returned as it is."""
        if name not in self._members:
            self._complete()
        return name if name in self._members else self._aliases.get(name, name)

    def aliases(self, name: str) -> list[str]:
        """Return the other names of a member."""
        self._complete()
        return sorted(alias for alias, member in self._aliases.items() if member == name)

    def _complete(self) -> None:
        """Find the further members, once."""
        if self._find is not None:
            find, self._find = self._find, None
            members, aliases = find()
            self._members = {**self._members, **{n: m for n, m in members.items() if n not in self._members}}
            taken = {*self._members, *self._aliases}
            self._aliases |= {alias: name for alias, name in aliases.items() if alias not in taken}

    def parameters(self, name: str) -> dict[str, Parameter]:
        """Return what a configuration may set beside a member's name: name -> parameter."""
        own = {key: self._in_configurations(parameter) for key, parameter in parameters_of(self[name]).items()}
        return own | self._common

    def build(self, name: str, /, *given: Any, **parameters: Any) -> T:
        """Return a new member.

        Args:
            name: name of the member.
            given: positional arguments, from the library.
            parameters: keyword arguments, from the user.

        Raises:
            ConfigError: if the name or a parameter is unknown, one is missing, or the member refuses a value.
        """
        member = self[name]
        known = parameters_of(member)
        for parameter in parameters:
            if parameter not in known:
                raise ConfigError(f"{self.kind} {name!r}: {unknown_name('parameter', parameter, known)}")
        if missing := [each for each in known.values() if each.required and each.name not in parameters]:
            raise ConfigError(f"{self.kind} {name!r}: parameter {missing[0].name!r} is required: {missing[0].meaning}")
        try:
            return member(*given, **{known[name].keyword: value for name, value in parameters.items()})
        except SparseMTLError:
            raise
        except ValueError as error:
            raise ConfigError(f"{self.kind} {name!r}: {error}") from error

    def summary(self, name: str) -> str:
        """Return the first paragraph of the member's docstring, without its source."""
        return _SOURCE.sub("", self._about(name), count=1)

    def source(self, name: str) -> str:
        """Return the source of the member, the brackets with a year in its docstring's first paragraph, or ""."""
        found = _SOURCE.search(self._about(name))
        return found[1] if found else ""

    def _about(self, name: str) -> str:
        return " ".join((inspect.getdoc(self[name]) or "").partition("\n\n")[0].split())


_SOURCE = re.compile(r" \(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
