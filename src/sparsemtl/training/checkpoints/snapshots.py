"""Snapshots of the best model so far, on disk or in memory, whole or per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from sparsemtl.errors import CheckpointError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.tasks.processes import ALONE, Processes
from sparsemtl.training.checkpoints.structure import check_state, check_tensors, reading


class Snapshots:
    """Keeps, for every part of the selection, the weights, networks and sharing state of its best epoch.

    Args:
        folder: folder to keep them in; None keeps them in memory.
        processes: processes that train together; the first keeps them for all.
    """

    def __init__(self, folder: RunFolder | None, processes: Processes = ALONE) -> None:
        self._folder = folder
        self._processes = processes
        self._memory: dict[str, Any] = {}

    def keep(self, part: str, model: MultiTaskModel, networks: TaskNetworks, sharing: Sharing) -> None:
        """Keep the present state."""
        if not self._processes.is_first:
            return
        state = {
            "model": dict(model.state_dict()),
            "networks": networks.state_dict(),
            "sharing": sharing.state_dict(),
        }
        if self._folder is None:
            self._memory[part] = deepcopy(state)
        else:
            self._folder.save(self._folder.best(part), state)

    def restore(
        self, parts: Sequence[str], model: MultiTaskModel, networks: TaskNetworks, sharing: Sharing
    ) -> TaskNetworks:
        """Restore the snapshots, and return the networks in them.

        Args:
            parts: "all", or every task where each has an epoch of its own.
            model: gets the weights. Each task's own modules come from its own epoch, the rest from the first task's;
                where a task's epoch had other values for the rest, they become the task's own tensors.
            networks: networks of the same form as those in the snapshots.
            sharing: gets the state of the first part.
        """
        states = self._processes.from_first(lambda: {part: self._load(part) for part in parts})
        if self._folder is not None:
            for part, state in states.items():
                _check(state, model, networks, sharing, self._where(part))
        with reading(self._where(parts[0]), "the best model of this run"):
            first = states[parts[0]]
            sharing.load_state_dict(first["sharing"])
            if list(parts) == ["all"]:
                model.load_state_dict(first["model"])
                return networks.restored(first["networks"])
            return _merged(states, model, networks)

    def _where(self, part: str) -> str:
        return "memory" if self._folder is None else str(self._folder.best(part))

    def _load(self, part: str) -> Any:
        if self._folder is not None:
            return self._folder.load(self._folder.best(part))
        if part not in self._memory:
            raise CheckpointError(f"no snapshot of {part!r} was kept.")
        return self._memory[part]


def _check(state: Any, model: MultiTaskModel, networks: TaskNetworks, sharing: Sharing, where: str) -> None:
    """Raise if a file is no snapshot of this run."""
    check_state(state, {"model": {}, "networks": {}, "sharing": {}}, where)
    check_tensors(state["model"], model.state_dict(), where, "the model")
    with reading(where, "the state of its sharing"):
        check_state(state["networks"], networks.state_dict(), f"{where}: networks")
        check_state(state["sharing"], sharing.state_dict(), f"{where}: sharing")


def _merged(states: Mapping[str, Any], model: MultiTaskModel, networks: TaskNetworks) -> TaskNetworks:
    """Load a model of several epochs; return networks in which each task is that of its own epoch."""
    owners = {name: task for task in states for prefix in model.task_modules(task) for name in _inside(prefix, model)}
    merged = dict(next(iter(states.values()))["model"])
    merged.update({name: states[task]["model"][name] for name, task in owners.items()})
    model.load_state_dict(merged)
    merged = model.state_dict()
    made = networks.restored({task: state["networks"][task] for task, state in states.items()})
    return made.with_own_tensors(
        {task: _differing(state["model"], merged, owners, made[task].own_tensors) for task, state in states.items()}
    )


def _inside(prefix: str, model: MultiTaskModel) -> list[str]:
    return [name for name in model.state_dict() if name.startswith(f"{prefix}.")]


def _differing(
    state: Mapping[str, Tensor], merged: Mapping[str, Tensor], owners: Mapping[str, str], own: Mapping[str, Any]
) -> dict[str, Tensor | None]:
    """Return the task's tensors: those that it has anyway, and those of its epoch that the merged model lacks."""
    others = {
        name: tensor.to(merged[name].device)
        for name, tensor in state.items()
        if name not in owners and name not in own and not torch.equal(tensor.to(merged[name].device), merged[name])
    }
    return {**others, **own}
