"""Processes: workers that end with their parent, and refusal of launchers of several processes."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process

from sparsemtl.errors import ParameterError

_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables of torchrun and of MPI's launchers with the number of processes."""


def refuse_distributed() -> None:
    """Raise if this process is one of several, each of which would train the whole model.

    Raises:
        ParameterError: if the environment announces several processes; it names the variable.
    """
    for name in _WORLD_SIZES:
        value = os.environ.get(name, "").strip()
        if value.isdecimal() and int(value) > 1:
            raise ParameterError(
                f"{name}={value} in the environment announces {value} processes, and each would train the whole model. "
                "Start it without torchrun or mpirun. For runs side by side use `sparsemtl study --jobs N`, for one "
                "run on several processes `devices` of a trainer or `sparsemtl run --devices N`, which torchrun may "
                "start."
            )


def end_with_parent() -> None:
    """End this process, a worker of `multiprocessing`, as soon as its parent has ended for whatever reason."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="ends-with-parent", daemon=True).start()
