"""Engines of a study: where its runs are computed. `LocalEngine` uses processes of this machine, `RayEngine` Ray."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sparsemtl.errors import ParameterError
from sparsemtl.study.calls import Lost, call
from sparsemtl.study.pool import in_processes

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """Call of a function with every item."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Generator[tuple[T, R | Lost], None, None]:
        """Yield item and result when a call has ended, in the order in which calls end.

        The result is `Lost` if the process of a call ended before the call. An error that the function raises is
        raised, and ends all other calls.
        """
        ...


class Engine(Protocol):
    """Engine of a study; functions and items are pickled unless it computes in this process."""

    @property
    def in_turn(self) -> bool:
        """True if items are computed one after the other, in this process."""
        ...

    def open(self) -> Any:
        """Return a context manager that yields an `Each` and ends all processes on exit."""
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine, or this process alone.

    Args:
        jobs: runs at a time; 1 computes in this process.
        retries: times that a run whose process was killed is started again, from its last checkpoint.

    Raises:
        ParameterError: if `jobs` is below 1 or `retries` below 0.
    """

    jobs: int = 1
    retries: int = 0

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ParameterError(f"`jobs` must be at least 1, got {self.jobs}.")
        if self.retries < 0:
            raise ParameterError(f"`retries` must be at least 0, got {self.retries}.")

    @property
    def in_turn(self) -> bool:
        """True if items are computed one after the other, in this process."""
        return self.jobs == 1

    @contextmanager
    def open(self) -> Iterator[Each]:
        """Yield the call of every item."""
        yield self._each

    def _each(self, function: Callable[[T], R], items: Sequence[T]) -> Generator[tuple[T, R | Lost], None, None]:
        if not self.in_turn and items:
            yield from in_processes(function, items, jobs=self.jobs, retries=self.retries)
            return
        for item in items:
            yield item, call(function, item)
