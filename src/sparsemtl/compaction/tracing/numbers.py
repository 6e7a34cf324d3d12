"""Numbers that are computed from sizes: plain numbers to Python, and nodes to the graph that is recorded.

A graph that froze them would be right for one size only. Arithmetic with them gives further such numbers. Whatever
turns one into a plain number or a truth value is a guard: the graph is right for inputs with the same answer alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import fx

Lazy = Callable[[], fx.Node]
"""Gives a node, which it creates when it is first called."""


class Guards(Protocol):
    """Interface of the recorder that numbers belong to."""

    def compute(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """Add a call of a function to the graph."""

    def guard(self, number: Recorded, compare: Callable[[Any, Any], bool], other: Any) -> None:
        """Note that the graph is right only while a comparison has the answer that it has now."""


class Recorded:
    """Number with the node that computes it.

    Attributes:
        guards: the recorder.
        node: gives the node.
    """

    guards: Guards
    node: Lazy

    def __eq__(self, other: object) -> bool:
        return _compared(self, operator.eq, other)

    def __ne__(self, other: object) -> bool:
        return _compared(self, operator.ne, other)

    def __lt__(self, other: Any) -> bool:
        return _compared(self, operator.lt, other)

    def __le__(self, other: Any) -> bool:
        return _compared(self, operator.le, other)

    def __gt__(self, other: Any) -> bool:
        return _compared(self, operator.gt, other)

    def __ge__(self, other: Any) -> bool:
        return _compared(self, operator.ge, other)

    def __hash__(self) -> int:
        return hash(self._fixed())

    def __bool__(self) -> bool:
        return _compared(self, operator.ne, 0)

    def __int__(self) -> int:
        return int(self._fixed())

    def __float__(self) -> float:
        return float(self._fixed())

    def __round__(self, digits: int | None = None) -> Any:
        return self._further(round) if digits is None else self._further(round, digits)

    def __ceil__(self) -> Any:
        return self._further(math.ceil)

    def __floor__(self) -> Any:
        return self._further(math.floor)

    def __trunc__(self) -> Any:
        return self._further(math.trunc)

    def __neg__(self) -> Any:
        return self._further(operator.neg)

    def __abs__(self) -> Any:
        return self._further(operator.abs)

    def _further(self, function: Callable[..., Any], *others: Any) -> Any:
        return number(function(plain(self), *others), self.guards, _later(self.guards, function, self, *others))

    def _fixed(self) -> Any:
        value = plain(self)
        self.guards.guard(self, operator.eq, value)
        return value


def _compared(one: Recorded, compare: Callable[[Any, Any], bool], other: object) -> bool:
    if not isinstance(other, (int, float)):
        return NotImplemented  # type: ignore[no-any-return]
    one.guards.guard(one, compare, other)
    return bool(compare(plain(one), plain(other)))


def _later(guards: Guards, function: Callable[..., Any], *args: Any) -> Lazy:
    """Return a call that enters the graph when it is first read."""
    made: list[fx.Node] = []

    def node() -> fx.Node:
        if not made:
            made.append(guards.compute(function, *args))
        return made[0]

    return node


def _arithmetic(function: Callable[[Any, Any], Any], *, swapped: bool) -> Callable[[Any, Any], Any]:
    def method(self: Recorded, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        args = (other, self) if swapped else (self, other)
        return number(function(*map(plain, args)), self.guards, _later(self.guards, function, *args))

    return method


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    _function = getattr(operator, _name)
    setattr(Recorded, f"__{_name}__", _arithmetic(_function, swapped=False))
    setattr(Recorded, f"__r{_name}__", _arithmetic(_function, swapped=True))


class _RecordedInt(Recorded, int):  # type: ignore[misc]  # rounds to a number that knows its node
    """Integer computed from sizes."""

    __hash__ = Recorded.__hash__


class _RecordedFloat(Recorded, float):  # type: ignore[misc]
    """Float computed from sizes."""

    __hash__ = Recorded.__hash__


def number(value: Any, guards: Guards, node: Lazy) -> Any:
    """Return a number with its node; other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    made = (_RecordedInt if isinstance(value, int) else _RecordedFloat)(value)
    made.guards, made.node = guards, node
    return made


def plain(value: Any) -> Any:
    """Return the plain number."""
    if isinstance(value, _RecordedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, _RecordedFloat) else value
