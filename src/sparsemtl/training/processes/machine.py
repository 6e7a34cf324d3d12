"""Machine of a run: processor, instructions, device, torch, compiled kernels and threads.

The last bits of figures depend on all of them. Sums over tensors are split between threads and between the lanes of
vector instructions, and another order of summands rounds to other bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from sparsemtl.kernels.compiled import NAMES, computed_by, library
from sparsemtl.kernels.processor import processor_name


class _HasThreads(Protocol):
    """Object with a number of threads of its own."""

    threads: int | None


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=_HasThreads)


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Set the number of threads that torch uses within one operation; restore it on exit.

    Args:
        count: number of threads, at least 1; None to change nothing.
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
    """Return the names of processor, instructions, device, version of torch, and what computed each kernel so far."""
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": str(torch.__version__),
        **{f"{_KERNEL}{name}": by for name, by in computed_by().items()},
    }


_KERNEL = "kernel "


def load_kernels(before: Mapping[str, str]) -> None:
    """Load the kernels that a machine had used, so that `machine` returns what computes them here."""
    for name in NAMES:
        if f"{_KERNEL}{name}" in before:
            library(name)


def machine_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the differences between two machines, such as "torch 2.3.0 there and 2.4.0 here"."""
    return [f"{key} {before[key]} there and {now[key]} here" for key in now if before.get(key, now[key]) != now[key]]
