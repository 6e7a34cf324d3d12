"""One call of a function with an item of a study, in this process or in a worker, and its outcome."""

from __future__ import annotations

import gc
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from sparsemtl.errors import SparseMTLError

T = TypeVar("T")
R = TypeVar("R")
LOST = "its process"
"""Beginning of the reason of a lost call."""


@dataclass(frozen=True)
class Lost:
    """Outcome of a call whose process ended before the call did.

    Attributes:
        reason: what ended the process, in the user's terms.
    """

    reason: str


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """Outcome of a call in a worker, which can be sent between processes.

    Attributes:
        result: the result; None if the call raised an error.
        error: the error that the call raised.
        trace: traceback of the error in the worker.
    """

    result: R | None = None
    error: BaseException | None = None
    trace: str = ""

    def unwrap(self) -> R:
        """Return the result, or raise the error, with the worker's traceback as its cause if it is not one of ours."""
        if self.error is not None:
            raise self.error from (
                None if isinstance(self.error, SparseMTLError) else _WorkerTracebackError(self.trace)
            )
        return self.result  # type: ignore[return-value]  # the result of the function, which may be None


class _WorkerTracebackError(Exception):
    """Traceback of an error in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def call(function: Callable[[T], R], item: T) -> R:
    """Call a function with an item, and collect the garbage that it leaves."""
    with _frozen_objects():
        return function(item)


def outcome_of(function: Callable[[T], R], item: T) -> Outcome[R]:
    """Call a function in a worker and return its outcome, which can be pickled."""
    try:
        return Outcome(call(function, item))
    except Exception as error:
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a library that cannot be sent
            return Outcome(error=SparseMTLError(f"{type(error).__name__}: {error}\n{trace}"))
        return Outcome(error=error, trace=trace)


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Collect garbage on exit, without a look at the million objects, mostly of libraries, that were there before.

    Models refer to themselves, and with them a run's data would stay until Python looks for cycles.
    """
    own = gc.get_freeze_count() == 0  # not if the application has frozen objects itself
    if own:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if own:
            gc.unfreeze()
