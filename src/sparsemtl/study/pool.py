"""Worker processes of a study on one machine; a worker that is killed loses its item and is replaced."""

from __future__ import annotations

import signal
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from sparsemtl.errors import SparseMTLError
from sparsemtl.study.calls import LOST, Lost, Outcome, outcome_of
from sparsemtl.study.workers import ignored_interrupts, worker_context
from sparsemtl.training.processes.workers import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
_READY = "ready"
"""First message of a worker: its modules are imported."""
_PATIENCE = 5.0
"""Seconds that a worker has to end by itself."""


def in_processes(
    function: Callable[[T], R], items: Sequence[T], *, jobs: int, retries: int = 0
) -> Generator[tuple[T, R | Lost], None, None]:
    """Call a function with every item in `jobs` processes; see `engines.Each`.

    Args:
        function: function to call; it is pickled.
        items: its items; they are pickled.
        jobs: processes at a time.
        retries: times that an item is started again when its process was killed.

    Raises:
        SparseMTLError: if a process cannot start.
    """
    waiting = deque((item, 0) for item in items)
    workers: list[_Worker[T, R]] = []
    try:
        while waiting or any(worker.busy for worker in workers):
            for worker in workers:
                if waiting and not worker.busy:
                    worker.give(*waiting.popleft())
            while waiting and len(workers) < jobs:
                workers.append(_Worker(function))
                workers[-1].give(*waiting.popleft())
            for worker in _ready([worker for worker in workers if worker.busy]):
                item, lost = worker.item, worker.lost
                outcome = worker.receive()
                if isinstance(outcome, Lost):
                    workers.remove(worker)
                    worker.end()
                    if lost < retries:
                        waiting.append((item, lost + 1))
                    else:
                        yield item, outcome
                elif outcome is not None:
                    yield item, outcome.unwrap()
        for worker in workers:
            worker.pipe.close()  # its loop ends
    except BaseException:
        for worker in workers:
            worker.process.terminate()
        raise
    finally:
        for worker in workers:
            worker.end()


class _Worker(Generic[T, R]):
    """Worker process and the item that it computes.

    Args:
        function: function to call with items.
    """

    item: T

    def __init__(self, function: Callable[[T], R]) -> None:
        context: Any = worker_context()
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, function, warnings.formatwarning), daemon=False
        )
        with ignored_interrupts():  # inherited by the process: this process ends it, not Ctrl-C
            self.process.start()
        theirs.close()
        self.busy, self.started, self.lost = False, False, 0

    def give(self, item: T, lost: int) -> None:
        """Start to compute an item, whose process was killed `lost` times before."""
        self.item, self.lost, self.busy = item, lost, True
        with suppress(OSError):  # the process has ended: `receive` says so
            self.pipe.send(item)

    def receive(self) -> Outcome[R] | Lost | None:
        """Return the outcome of the item, `Lost` if the process has ended, or None if the process has only started."""
        try:
            message = self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            message = None
        if message is None:
            self.busy = False
            return Lost(self._reason())
        if message == _READY:
            self.started = True
            return None
        self.busy = False
        outcome: Outcome[R] = message
        return outcome

    def _reason(self) -> str:
        """Return why the process ended.

        Raises:
            SparseMTLError: if it could not start.
        """
        self.process.join(_PATIENCE)
        status = self.process.exitcode
        if status is not None and status > 0 and not self.started:
            raise SparseMTLError(
                f"a process of the study could not start (exit status {status}); its error is printed above. In a "
                "script, call `run_study` below `if __name__ == '__main__':`."
            )
        if status is not None and status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            memory = ", perhaps because memory was used up (fewer --jobs need less)" if name == "SIGKILL" else ""
            return f"{LOST} was killed by {name}{memory}"
        return f"{LOST} ended with exit status {status}"

    def end(self) -> None:
        """End the process if it has not ended by itself."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _ready(workers: Sequence[_Worker[T, R]]) -> list[_Worker[T, R]]:
    """Return the workers with a message, and those that ended: a process of theirs may still hold their pipe."""
    ready = set(wait([end for worker in workers for end in (worker.pipe, worker.process.sentinel)]))
    return [worker for worker in workers if not ready.isdisjoint((worker.pipe, worker.process.sentinel))]


def _work(pipe: Connection, function: Callable[[Any], Any], formatwarning: Any) -> None:
    """Compute the items that come through a pipe, until it is closed."""
    end_with_parent()
    warnings.formatwarning = formatwarning
    pipe.send(_READY)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(outcome_of(function, item))
