"""The best model so far, on disk or in memory, whole or task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from sparsemtl.errors import CheckpointError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.swap import seen
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.storage.run_folder import RunFolder
from sparsemtl.training.evaluation import Network
from sparsemtl.training.structure import check_state, check_tensors, reading


class Snapshots:
    """Keeps, for every part of the selection, the weights and sharing state of its best epoch.

    Args:
        folder: where to keep them; in memory if None.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self._folder = folder
        self._memory: dict[str, Any] = {}

    def keep(self, part: str, model: MultiTaskModel, sharing: Sharing) -> None:
        """Keep the state as it is now."""
        state = {"model": dict(model.state_dict()), "sharing": sharing.state_dict()}
        if self._folder is None:
            self._memory[part] = deepcopy(state)
        else:
            self._folder.save(self._folder.best(part), state)

    def put_back(self, parts: Sequence[str], model: MultiTaskModel, sharing: Sharing) -> dict[str, Network]:
        """Restore what was kept.

        Args:
            parts: "all", or every task where each has an epoch of its own.
            model: gets the weights; what is used by one task only comes from its own epoch, the rest from the first's.
            sharing: gets its state, task by task.

        Returns:
            task -> its own network, if tasks that share weights were chosen apart.
        """
        states = {part: self._load(part) for part in parts}
        for part, state in states.items():
            _check(state, model, sharing, self._where(part))
        with reading(self._where(parts[0]), "the best model of this run"):
            return self._put_back(states, model, sharing)

    def _put_back(self, states: Mapping[str, Any], model: MultiTaskModel, sharing: Sharing) -> dict[str, Network]:
        parts = list(states)
        if parts == ["all"]:
            _restore(states["all"], model, sharing)
            return {}
        networks = {} if model.independent else {task: _network(states[task], model, sharing, task) for task in parts}
        merged = dict(next(iter(states.values()))["model"])
        for task, state in states.items():
            prefixes = tuple(f"{name}." for name in model.task_modules(task))
            merged.update((name, tensor) for name, tensor in state["model"].items() if name.startswith(prefixes))
        model.load_state_dict(merged)
        sharing.put_back({task: state["sharing"] for task, state in states.items()})
        return networks

    def _where(self, part: str) -> str:
        return "memory" if self._folder is None else str(self._folder.best(part))

    def _load(self, part: str) -> Any:
        if self._folder is not None:
            return self._folder.load(self._folder.best(part))
        if part not in self._memory:
            raise CheckpointError(f"no snapshot of {part!r} was kept.")
        return self._memory[part]


def _check(state: Any, model: MultiTaskModel, sharing: Sharing, where: str) -> None:
    """Refuse what is no snapshot of this run."""
    check_state(state, {"model": {}, "sharing": {}}, where)
    check_tensors(state["model"], model.state_dict(), where, "the model")
    with reading(where, "the state of its sharing"):
        check_state(state["sharing"], sharing.state_dict(), f"{where}: sharing")


def _restore(state: Mapping[str, Any], model: MultiTaskModel, sharing: Sharing) -> None:
    model.load_state_dict(state["model"])
    sharing.load_state_dict(state["sharing"])


def task_network(model: MultiTaskModel, sharing: Sharing, task: str) -> Network:
    """Every tensor that the task's output needs, as the task sees it."""
    modules = {**model.shared_modules(), **model.unmasked_modules(), **model.task_modules(task)}
    prefixes = tuple(f"{name}." for name in modules)
    return {name: tensor for name, tensor in _seen(model, sharing, task).items() if name.startswith(prefixes)}


def _network(state: Mapping[str, Any], model: MultiTaskModel, sharing: Sharing, task: str) -> Network:
    """Every tensor of the model as the task sees it in a state."""
    _restore(state, model, sharing)
    return _seen(model, sharing, task)


def _seen(model: MultiTaskModel, sharing: Sharing, task: str) -> Network:
    with sharing.view(task):
        return {name: None if tensor is None else tensor.detach().clone() for name, tensor in seen(model).items()}
