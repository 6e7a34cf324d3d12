"""Files of a run beside its checkpoints: configuration, environment, trained networks, samples and summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.storage.files import write_tensors
from sparsemtl.storage.locks import locked, refuse_foreign
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.storage.stops import recorded_stop, remove_stop
from sparsemtl.storage.text_files import write_json
from sparsemtl.training.checkpoints.resuming import refuse_earlier_run
from sparsemtl.training.processes.machine import machine


@dataclass(frozen=True)
class RunFiles:
    """Writes the files of a run; without a folder, it writes nothing.

    Args:
        folder: the run folder.
    """

    folder: RunFolder | None

    @contextmanager
    def fitting(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Hold the lock of the folder inside the context, in which a run is trained, and record why it stops.

        Args:
            resume: the run in the folder goes on.
            overwrite: a new run replaces the one in the folder.

        Raises:
            CheckpointError: if the folder holds files of others, or a run that nobody asked to resume or replace, or if
                another process writes there.
        """
        if self.folder is not None and not resume:
            refuse_foreign(self.folder.path)
        with self.writing():
            if self.folder is not None and not (resume or overwrite):
                refuse_earlier_run(self.folder)
            with recorded_stop(self.folder) if self.folder is not None else nullcontext():
                yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the folder inside the context."""
        if self.folder is None:
            yield
            return
        with locked(self.folder.path):
            yield

    def write_begin(self, config: Mapping[str, Any], device: torch.device, seed: int | None) -> None:
        """Write the configuration and the environment, and remove the record of an earlier stop."""
        if self.folder is not None:
            remove_stop(self.folder)
            self.folder.write_config(dict(config))
            self.folder.write_environment(machine(device) | {"device": str(device)}, seed=seed)

    def remove_results(self) -> None:
        """Remove the results of an earlier run, which a new one replaces."""
        if self.folder is not None:
            self.folder.remove_results()

    def write_networks(self, model: MultiTaskModel, networks: TaskNetworks) -> None:
        """Write the trained weights and the tasks' networks."""
        if self.folder is not None:
            write_tensors(self.folder.model, model.state_dict(), {"model": type(model).__name__})
            networks.save(self.folder.networks)

    def write_samples(self, samples: Mapping[str, Any]) -> None:
        """Write inputs with targets and predictions."""
        if self.folder is not None:
            self.folder.save(self.folder.samples, dict(samples))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary of the run."""
        if self.folder is not None:
            write_json(self.folder.summary, dict(summary))
