"""What the last bits of a run's figures depend on: processor, instructions, device, torch and the number of threads.

Sums over tensors are split between threads and between the numbers that a processor handles at once, and another order
of summands rounds to other bits.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch


class HasThreads(Protocol):
    """Computes with a number of threads of its own."""

    threads: int | None


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=HasThreads)


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads that torch uses within one operation; on exit it is what it was before.

    Args:
        count: the number, at least 1; None leaves it as it is.
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def with_own_threads(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Run a method with the `threads` of its object, see `use_threads`."""

    @functools.wraps(method)
    def wrapper(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with use_threads(self.threads):
            return method(self, *args, **kwargs)

    return wrapper


def machine(device: torch.device) -> dict[str, str]:
    """Return what besides the number of threads decides the last bits of results on a device, in words."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": str(torch.__version__),
    }


def machine_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what differs between two machines, each "torch 2.3.0 there and 2.4.0 here"."""
    return [f"{key} {before[key]} there and {now[key]} here" for key in now if before.get(key, now[key]) != now[key]]


@functools.cache
def _processor() -> str:
    """Return the processor's model. Linux tells it in /proc/cpuinfo, other systems through `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
