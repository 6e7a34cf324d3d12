"""Signs of life of the processes of a run, by which an error names the process that ended and why."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

_EVERY, _MOMENT, _PATIENCE = 2.0, 3.0, 10.0
"""Seconds between two signs, that a process may need to end, and that a diagnosis may take."""


class Signs:
    """Signs of this process and of the others, in the store that connects them.

    Args:
        store: store of `torch.distributed`.
        rank: this process.
        count: number of processes.
        children: rank -> process that this process has started.

    Attributes:
        exchanges: exchanges with the others that this process has begun.
    """

    def __init__(self, store: Any, rank: int, count: int, children: Mapping[int, Popen[Any]]) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(count) if other != rank]
        self._children = children
        self.exchanges = 0
        threading.Thread(target=self._give, name="signs-of-life", daemon=True).start()

    def _give(self) -> None:
        with suppress(Exception):  # the store is gone, with the process that holds it
            while True:
                sign = [os.getpid(), socket.gethostname(), self.exchanges]
                self._store.set(f"sparsemtl/sign/{self._rank}", json.dumps(sign))
                time.sleep(_EVERY)

    def announce_end(self, cause: str, *, stop_children: bool = False) -> None:
        """Leave a cause for the others, before this process ends."""
        with suppress(Exception):
            self._store.set(f"sparsemtl/end/{self._rank}", cause)
        for child in self._children.values() if stop_children else ():
            child.terminate()

    def diagnosis(self) -> str:
        """Return which process has ended, or does not answer, and why; "" if that cannot be found out."""
        found: list[str] = []

        def look() -> None:
            with suppress(Exception):
                found.append(self._found())

        thread = threading.Thread(target=look, daemon=True)  # the store may not answer
        thread.start()
        thread.join(_PATIENCE)
        if not found and self._rank != 0:
            return "process 0, which connects the others, has ended or does not answer"
        return found[0] if found else ""

    def _found(self) -> str:
        for rank in self._others:
            if cause := self._value(f"sparsemtl/end/{rank}"):
                return f"process {rank} {cause}"
        signs = {rank: json.loads(self._value(f"sparsemtl/sign/{rank}") or '[0, "", 0]') for rank in self._others}
        until = time.monotonic() + _MOMENT
        while time.monotonic() < until:
            for rank, (pid, host, _) in signs.items():
                if end := self._end_of(rank, pid, host):
                    return end
            time.sleep(0.2)
        for rank, (pid, host, exchanges) in signs.items():
            if exchanges < self.exchanges:
                where = f"process {rank} (pid {pid} on {host})" if pid else f"process {rank}"
                return f"{where} does not answer: it is at exchange {exchanges}, this one at {self.exchanges}"
        return ""

    def _end_of(self, rank: int, pid: int, host: str) -> str:
        """Return how a process ended; "" if it runs, or on another machine."""
        if rank in self._children:
            status = self._children[rank].poll()
            if status is not None and status < 0:
                return f"process {rank} (pid {pid}) was killed by {_name_of(-status)}"
            return "" if status is None else f"process {rank} (pid {pid}) ended with exit status {status}"
        if pid and host == socket.gethostname() and not _runs(pid):
            return f"process {rank} (pid {pid}) has ended without a word, as one does that is killed"
        return ""

    def _value(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""


def _name_of(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _runs(pid: int) -> bool:
    """Return True unless a process of this machine has ended; one that its parent has not looked at yet has."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True
