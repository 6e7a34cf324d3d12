"""Processes of a run: started through Lightning Fabric, or found."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from sparsemtl.errors import ParameterError, SparseMTLWarning
from sparsemtl.tasks.processes import ALONE, Processes
from sparsemtl.tasks.signs import Signs
from sparsemtl.training.processes.workers import refuse_distributed

if TYPE_CHECKING:
    from sparsemtl.training.options import TrainingOptions


_START = 600.0
"""Seconds that processes have at least to start and find each other."""
_LAST_WORDS = 30
"""Seconds that a process has to end by itself after another one has ended."""


def announces_several(options: TrainingOptions) -> bool:
    """Return True if the options, torchrun or a process group of the program's own make several processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size() > 1
    return options["devices"] * options["num_nodes"] > 1 or (_from_torchrun() and int(os.environ["WORLD_SIZE"]) > 1)


def refuse_other_launchers() -> None:
    """Raise if several processes are announced by another launcher than torchrun, SLURM or Lightning Fabric.

    Raises:
        ParameterError: naming the variable of the environment.
    """
    if "LOCAL_RANK" not in os.environ:
        refuse_distributed()


def refuse_several(options: TrainingOptions, what: str) -> None:
    """Raise if several processes would run what is for one.

    Raises:
        ParameterError: naming it.
    """
    if announces_several(options):
        raise ParameterError(
            f"{what} chooses by what one process has trained, and several are announced. Use devices=1 "
            "(`training.devices`), without torchrun."
        )


def is_first_process() -> bool:
    """Return False in the processes of a run that leave files and the screen to the first one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return True


def starts_first(options: TrainingOptions) -> bool:
    """Return True unless this will be another process than the first, before the processes are connected."""
    if not announces_several(options) or torch.distributed.is_initialized():
        return is_first_process()
    ranks = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def start_processes(options: TrainingOptions) -> Processes:
    """Start the processes that the options ask for, and connect them; those that exist already are used.

    The processes of torchrun and of SLURM, and a process group that the program has made itself, are used as they are.
    Otherwise Lightning Fabric runs this program once more for each further process.

    Raises:
        ParameterError: if the number of processes is another one than the options say, or processes of MPI are found,
            or the strategy cannot be used.
    """
    if options["strategy"] == "fsdp":
        raise ParameterError(
            "strategy='fsdp' splits each weight among the processes, and masks, criteria and checkpoints need weights "
            "as a whole. Use strategy='ddp', in which every process has the whole model."
        )
    if not announces_several(options):
        refuse_distributed()
        return ALONE
    asked = options["devices"] * options["num_nodes"]
    if torch.distributed.is_initialized():
        found = torch.distributed.get_world_size()
    elif _from_torchrun():
        found = int(os.environ["WORLD_SIZE"])
    else:
        found = asked
    if asked not in (1, found):
        raise ParameterError(
            f"devices={options['devices']} times num_nodes={options['num_nodes']} are {asked} processes, but {found} "
            "run. Give the numbers that the launcher starts, or neither."
        )
    if not torch.distributed.is_initialized():
        _launch(options)
        timeout = timedelta(seconds=options["process_timeout"])
        _GROUPS[_store()] = torch.distributed.new_group(timeout=timeout)
    if torch.cuda.is_available() and torch.distributed.get_backend() == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return Processes(_GROUPS.get(_store(), torch.distributed.group.WORLD), _signs())


_CHILDREN: dict[int, Any] = {}
"""Rank -> process that this process has started."""
_SIGNS: dict[Any, Signs] = {}
"""Store of a process group -> signs of life in it."""
_GROUPS: dict[Any, Any] = {}
"""Store of a process group that was launched here -> group of the same processes, in which waiting has a limit."""


def _store() -> Any:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _signs() -> Signs:
    store = _store()
    if store not in _SIGNS:
        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        _SIGNS[store] = Signs(store, rank, count, _CHILDREN)
    return _SIGNS[store]


def _launch(options: TrainingOptions) -> None:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    if _from_torchrun():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    else:
        devices, nodes = options["devices"], options["num_nodes"]
    start = max(options["process_timeout"], _START)  # others may import for minutes, on a busy machine
    # stack traces of torch's C++ code, in processes that outlive the first one for a moment
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    strategy = DDPStrategy(timeout=timedelta(seconds=start))
    if not _from_torchrun() and os.environ.get("LOCAL_RANK", "0") != "0":
        _end_with_launcher(os.getppid())
    try:
        with _quiet_fabric():
            fabric = Fabric(accelerator=options["accelerator"], devices=devices, num_nodes=nodes, strategy=strategy)
            fabric.launch()
        _watch_children(fabric.strategy.launcher)
    except (ValueError, RuntimeError) as error:
        raise ParameterError(f"{devices * nodes} processes cannot be started here: {error}") from error


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Show no messages of Fabric inside the context but its warnings: each process would print that it is connected."""
    logger = logging.getLogger("lightning_fabric")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _watch_children(launcher: Any) -> None:
    """Let this process say why a process ended that it has started: Fabric would kill all within seconds."""
    _CHILDREN.update(enumerate(getattr(launcher, "procs", ()), start=torch.distributed.get_rank() + 1))

    def end_later() -> None:
        time.sleep(_LAST_WORDS)
        print("ProcessError: another process of this run has ended; this one ends too.", file=sys.stderr, flush=True)
        for child in _CHILDREN.values():
            child.kill()
        os._exit(1)

    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._terminate_all = end_later  # type: ignore[attr-defined]


def _end_with_launcher(launcher: int) -> None:
    """End this process half a minute after the one that started it, if it still waits: GPUs do not notice a death."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        time.sleep(_LAST_WORDS)
        print("ProcessError: the first process of this run has ended; this one ends too.", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="ends-with-launcher", daemon=True).start()


def _from_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


@contextmanager
def taking_part(processes: Processes) -> Iterator[None]:
    """Inside the context, the first process alone shows our warnings, which are the same in all.

    A process that ends by an error or an interruption leaves its cause for the others.
    """
    with processes.announced_end(), nullcontext() if processes.is_first else warnings.catch_warnings():
        if not processes.is_first:
            warnings.simplefilter("ignore", SparseMTLWarning)
        yield


def own_device(accelerator: str) -> Any:
    """Return the devices of this process, as Fabric takes them: one of the machine's GPUs, or one CPU."""
    uses_gpu = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    return [int(os.environ.get("LOCAL_RANK", "0"))] if uses_gpu and connected else 1
