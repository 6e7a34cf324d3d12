"""Engine of a study on Ray: the cores and GPUs of this machine, or a cluster."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sparsemtl.data.options import ROOT_VARIABLE, resolve_root
from sparsemtl.errors import ParameterError, SparseMTLError, missing_extra
from sparsemtl.study.calls import LOST, Lost, Outcome, outcome_of
from sparsemtl.study.engines import Each

T = TypeVar("T")
R = TypeVar("R")
_OBJECT_STORE = 128 * 2**20
"""Bytes of shared memory of a Ray that starts here: runs read and write files, and exchange only their names."""


@dataclass(frozen=True)
class RayEngine:
    """Workers of Ray. Runs read their data and write their folders on a file system that all machines share.

    Args:
        address: address of a cluster, such as "auto" or "ray-head:6379"; None starts Ray on this machine, unless it
            runs in this process already.
        cpus_per_run: cores that Ray reserves for a run; they bound the number of runs at a time.
        gpus_per_run: GPUs that Ray reserves for a run; 0.5 places two runs on a GPU, and 0 hides GPUs from runs.
        retries: times that a run whose process or machine was lost is started again, from its last checkpoint.

    Raises:
        ParameterError: if a number is below 0, or all resources are 0.
    """

    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        for name in ("cpus_per_run", "gpus_per_run", "retries"):
            if getattr(self, name) < 0:
                raise ParameterError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if not (self.cpus_per_run or self.gpus_per_run):
            raise ParameterError("`cpus_per_run` and `gpus_per_run` are both 0: nothing bounds the runs at a time.")

    @property
    def in_turn(self) -> bool:
        """False: runs are computed side by side."""
        return False

    @contextmanager
    def open(self) -> Iterator[Each]:
        """Connect to Ray when the first item is computed, and yield the call of every item."""
        with ExitStack() as stack:
            connected: list[Any] = []

            def each(function: Callable[[T], R], items: Sequence[T]) -> Generator[tuple[T, R | Lost], None, None]:
                if items and not connected:
                    connected.append(stack.enter_context(self._connected()))
                if items:
                    yield from self._each(connected[0], function, items)

            yield each

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield Ray, connected; a connection that starts here ends on exit."""
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            with _kept_signals():
                _connect(ray, self.address)
        try:
            self._check_resources(ray)
            yield ray
        finally:
            if own:
                with _kept_signals():
                    ray.shutdown()

    def _check_resources(self, ray: Any) -> None:
        """Raise if no machine has the resources of a run; warn if GPUs stay unused.

        Raises:
            SparseMTLError: if Ray runs on this machine alone and has too little. A cluster may still grow.
        """
        found = ray.cluster_resources()
        wanted = {"CPU": self.cpus_per_run, "GPU": self.gpus_per_run}
        short = [f"{amount:g} {name}s, found {found.get(name, 0):g}" for name, amount in wanted.items()
                 if amount > found.get(name, 0)]  # fmt: skip
        if short and self.address is None:
            raise SparseMTLError(
                f"a run needs {' and '.join(short)}. Lower --cpus-per-run or --gpus-per-run, or name a cluster: "
                "--address."
            )
        if short:
            warnings.warn(f"a run needs {' and '.join(short)} in the cluster; runs wait until it grows.", stacklevel=2)
        if found.get("GPU") and not self.gpus_per_run:
            warnings.warn(
                f"the cluster has {found['GPU']:g} GPUs, and runs use none. --gpus-per-run 1 gives one to each.",
                stacklevel=2,
            )

    def _each(
        self, ray: Any, function: Callable[[T], R], items: Sequence[T]
    ) -> Generator[tuple[T, R | Lost], None, None]:
        remote = ray.remote(num_cpus=self.cpus_per_run, num_gpus=self.gpus_per_run, max_retries=self.retries)(_call)
        environment = {ROOT_VARIABLE: str(resolve_root(None).absolute())}
        pending = {remote.remote(function, item, os.getcwd(), environment): item for item in items}
        try:
            while pending:
                (done, *_), _ = ray.wait(list(pending), num_returns=1)
                item = pending.pop(done)
                yield item, self._result(ray, done)
        finally:
            for reference in pending:  # an error, or an interruption
                with suppress(Exception):
                    ray.cancel(reference, force=True)

    def _result(self, ray: Any, reference: Any) -> Any:
        errors = ray.exceptions
        lost = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.LocalRayletDiedError)
        try:
            outcome: Outcome[Any] = ray.get(reference)
        except lost as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            return Lost(f"{LOST} was lost {self.retries + 1} times ({type(error).__name__}: {reason})")
        return outcome.unwrap()


def _call(function: Callable[[T], R], item: T, folder: str, environment: Mapping[str, str]) -> Outcome[R]:
    """Compute an item in a worker of Ray, with the working directory and the data of the process of the study."""
    os.environ.update(environment)
    if os.path.isdir(folder):
        os.chdir(folder)
    return outcome_of(function, item)


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"logging_level": "warning", "include_dashboard": False}
    if address is None and "RAY_ADDRESS" not in os.environ:
        ray.init(object_store_memory=_OBJECT_STORE, **options)
        return
    try:
        ray.init(address=address, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SparseMTLError(
            f"{socket.gethostname()} cannot connect to Ray at {address or os.environ['RAY_ADDRESS']!r}: "
            f"{str(error).strip().splitlines()[0]} Start it with `ray start --head`, or leave --address out to use "
            "this machine."
        ) from None


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "`--engine ray`") from None
    return ray
