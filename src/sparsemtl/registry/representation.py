"""Representation of an object as the call of its constructor."""

from __future__ import annotations

from typing import Any


class ConstructorRepr:
    """Mixin whose `repr` is the call that made the object.

    Examples:
        >>> class Point(ConstructorRepr):
        ...     def __init__(self, x: int, *, unit: str = "m") -> None:
        ...         self.x = x
        >>> Point(3, unit="cm")
        Point(3, unit='cm')
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keep the arguments for `repr`."""
        made = super().__new__(cls)
        made._arguments = (args, kwargs)
        return made

    def __repr__(self) -> str:
        args, kwargs = self._arguments
        given = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
        return f"{type(self).__name__}({', '.join(given)})"
