"""Calls of a function with every item of a study, one after the other or in several processes."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children
from typing import TypeVar

from sparsemtl.errors import SparseMTLError
from sparsemtl.study.workers import ignored_interrupts, worker_context
from sparsemtl.training.processes import end_with_parent

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], items: Sequence[T], jobs: int) -> Generator[tuple[T, R], None, None]:
    """Call a function with every item, in `jobs` processes; yield item and result when a call has ended."""
    if jobs > 1 and items:
        yield from _in_processes(function, items, jobs)
        return
    for item in items:
        with _frozen_objects():
            result = function(item)
        yield item, result


def _in_processes(function: Callable[[T], R], items: Sequence[T], jobs: int) -> Iterator[tuple[T, R]]:
    others = set(active_children())
    workers, start = min(jobs, len(items)), (warnings.formatwarning,)
    with ProcessPoolExecutor(workers, worker_context(), initializer=_start_worker, initargs=start) as pool:
        with ignored_interrupts():  # inherited by the processes: this process ends them, not Ctrl-C
            pending = {pool.submit(_in_worker, function, item): item for item in items}
        try:
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise SparseMTLError(
                "a process that trained runs was killed, perhaps because memory was used up. Resume with the same "
                "command; fewer --jobs need less memory."
            ) from None
        except BaseException:
            for worker in set(active_children()) - others:
                worker.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(formatwarning: Callable[..., str]) -> None:
    end_with_parent()
    warnings.formatwarning = formatwarning


def _in_worker(function: Callable[[T], R], item: T) -> R:
    with _frozen_objects():
        return function(item)


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
