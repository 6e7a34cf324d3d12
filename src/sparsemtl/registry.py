"""Registries: a class put in its axis's registry is at once in the configuration, the command line and the docs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from sparsemtl.errors import ConfigError, unknown_name
from sparsemtl.parameters import configurable

T = TypeVar("T")


class Registry(Mapping[str, Callable[..., T]], Generic[T]):
    """The members of one axis by name.

    Args:
        kind: what a member is, as error messages call it ("sharing method").
        members: name -> class, or function that builds one. Its keyword-only parameters are what a
            configuration may set.
    """

    def __init__(self, kind: str, members: Mapping[str, Callable[..., T]]) -> None:
        self.kind = kind
        self._members = dict(members)

    def __getitem__(self, name: str) -> Callable[..., T]:
        try:
            return self._members[name]
        except KeyError:
            raise ConfigError(unknown_name(self.kind, name, self._members)) from None

    def __setitem__(self, name: str, member: Callable[..., T]) -> None:
        """Add a member, as a package that extends sparsemtl does."""
        self._members[name] = member

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def build(self, name: str, /, *given: Any, **parameters: Any) -> T:
        """Make the member `name`: `given` comes from the library, `parameters` from the user.

        Raises:
            ConfigError: if the name or a parameter is unknown.
        """
        member = self[name]
        known = {parameter for parameter, _, _ in configurable(member)}
        for parameter in parameters:
            if parameter not in known:
                raise ConfigError(f"{self.kind} {name!r}: {unknown_name('parameter', parameter, known)}")
        return member(*given, **parameters)

    def summary(self, name: str) -> str:
        """First sentence of the member's docstring."""
        text = inspect.getdoc(self[name]) or ""
        return text.split("\n\n")[0].replace("\n", " ")
