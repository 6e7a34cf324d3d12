"""Two processes that run a function side by side, connected by gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_METHOD = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def together(function: Callable[..., Any], *args: Any, count: int = 2) -> list[Any]:
    """Return the results of a function in processes of rank 0, 1, ...; an exception is a result as well.

    A process that ends without a result has its exit code in its place.
    """
    context: Any = multiprocessing.get_context(_METHOD)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(target=_run, args=(rank, count, Path(folder) / "store", pipes[rank][1], function, args))
            for rank in range(count)
        ]
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        results: list[Any] = []
        for process, (receiver, _) in zip(processes, pipes, strict=True):
            try:
                results.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                process.join()
                results.append(process.exitcode)
        for process in processes:
            process.join()
        return results


def _run(rank: int, count: int, store: Path, sender: Any, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
        result = function(*args)
    except Exception as error:
        traceback.print_exc()
        result = error
    sender.send_bytes(pickle.dumps(result))  # a pipe's own pickles share the memory of tensors
    sender.close()
    if not isinstance(result, Exception):
        with suppress(RuntimeError):
            dist.barrier()
    sys.stdout.flush()
    os._exit(0)
