"""The best model so far, on disk or in memory, whole or task by task."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from sparsemtl.errors import CheckpointError
from sparsemtl.models import MultiTaskModel
from sparsemtl.sharing.sharing import Sharing
from sparsemtl.training.folder import RunFolder
from sparsemtl.training.selection import chosen_apart


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

    def put_back(self, part: str, model: MultiTaskModel, sharing: Sharing) -> None:
        """Restore what was kept: the whole model, or what belongs to an independent task only."""
        state = self._load(part)
        if part in model.tasks and chosen_apart(model):
            prefixes = tuple(f"{name}." for name in model.task_modules(part))
            own = {name: t for name, t in state["model"].items() if name.startswith(prefixes)}
            model.load_state_dict({**model.state_dict(), **own})
        else:
            model.load_state_dict(state["model"])
            sharing.load_state_dict(state["sharing"])

    def _load(self, part: str) -> Any:
        if self._folder is not None:
            return self._folder.load(self._folder.best(part))
        if part not in self._memory:
            raise CheckpointError(f"no snapshot of {part!r} was kept.")
        return self._memory[part]
