"""Processes of a study with several jobs: how they start, and how they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.context import BaseContext

_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Devices of GPUs on Linux, on WSL, and of AMD's."""
_OF_A_TERMINAL = [signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that a terminal sends to all its processes at once."""
_prepared = False


def prepare_workers() -> None:
    """Start a server that imports what workers need, meanwhile, and forks them later.

    Without it each worker imports all modules itself. It has no effect where workers cannot be forked: beside a GPU, a
    library that looks for GPUs when it is imported would spoil it for forked processes.
    """
    global _prepared
    if sys.platform != "linux" or any(map(os.path.exists, _GPUS)):
        return
    with ignored_interrupts():
        forkserver.set_forkserver_preload(["sparsemtl.study.preloaded"])
        forkserver.ensure_running()
    _prepared = True


def worker_context() -> BaseContext:
    """Return the context of `multiprocessing` in which workers start."""
    return get_context("forkserver" if _prepared else "spawn")


@contextmanager
def ignored_interrupts() -> Iterator[None]:
    """Ignore the signals of a terminal; processes that start inside the context ignore them for good."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _OF_A_TERMINAL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
