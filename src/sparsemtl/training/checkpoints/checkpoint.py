"""State of a run: model, named parts and progress, written to a checkpoint and restored from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from sparsemtl.errors import CheckpointError
from sparsemtl.networks.randomness import random_state, restore_random_state
from sparsemtl.storage.comparison import plain
from sparsemtl.training.checkpoints.structure import check_optimizer, check_state, check_tensors, reading

if TYPE_CHECKING:
    from sparsemtl.training.settings import RunSettings

FORMAT = "sparsemtl-checkpoint-2"


class Stateful(Protocol):
    """Object with a state that can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore a state."""


def fingerprint(model: nn.Module) -> dict[str, list[int]]:
    """Return the names and shapes of a model's parameters, by which a checkpoint identifies its model."""
    return {name: list(p.shape) for name, p in model.named_parameters()}


def check_fingerprint(expected: Mapping[str, Sequence[int]], model: nn.Module, where: str) -> None:
    """Raise if a checkpoint was made for another model.

    Raises:
        CheckpointError: naming the first parameter that differs.
    """
    found = fingerprint(model)
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{where} was made for another model: parameter {name!r} is {expected.get(name, 'absent')} there and "
                f"{found.get(name, 'absent')} here."
            )


def kinds(parts: Mapping[str, Stateful]) -> dict[str, str]:
    """Return name of every part -> its class, by which a checkpoint identifies method, optimizer and schedule."""
    return {name: type(part).__name__ for name, part in parts.items()}


def snapshot(model: nn.Module, parts: Mapping[str, Stateful], progress: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a run: model, named parts, progress."""
    return {
        "format": FORMAT,
        "fingerprint": fingerprint(model),
        "model": dict(model.state_dict()),
        "kinds": kinds(parts),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "progress": dict(progress),
    }


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    parts: Mapping[str, Stateful],
    where: str,
    *,
    settings: RunSettings | None = None,
) -> dict[str, Any]:
    """Restore a snapshot; return its progress.

    Args:
        state: the snapshot, with the `settings` of its run if any are given here.
        model: the model.
        parts: all other parts of the run, as they are before its first step.
        where: the file, for messages.
        settings: settings of the run that resumes.

    Raises:
        CheckpointError: if it is no checkpoint, or a damaged one, or one of another model, method, optimizer, schedule
            or of other settings.
    """
    check_form(state, where)
    check_fingerprint(plain(state["fingerprint"]), model, where)
    there, here = plain(state["kinds"]), kinds(parts)
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"{where} was made by another run: its {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here."
            )
    if settings is not None:
        settings.check(state.get("settings"), where)
    check_tensors(state["model"], model.state_dict(), where, "the model")
    for name, part in parts.items():
        own = f"{where}: parts.{name}"
        if name not in state["parts"]:
            raise CheckpointError(f"{own} is missing.")
        with reading(where, f"the state of its {name}"):
            if isinstance(part, Optimizer):
                check_optimizer(state["parts"][name], part, own)
            else:
                form = getattr(part, "state_form", part.state_dict)
                check_state(state["parts"][name], form(), own)
    model.load_state_dict(state["model"])
    for name, part in parts.items():
        with reading(where, f"the state of its {name}"):
            part.load_state_dict(state["parts"][name])
    progress: dict[str, Any] = state["progress"]
    return progress


def check_form(state: Any, where: str) -> None:
    """Raise a CheckpointError unless a file holds the parts of a checkpoint of this version."""
    found = state.get("format") if isinstance(state, Mapping) else None
    if found != FORMAT:
        raise CheckpointError(f"{where} is not a checkpoint of this version: format {found!r}.")
    for key in ("fingerprint", "model", "kinds", "parts", "progress"):
        if not isinstance(state.get(key), Mapping):
            raise CheckpointError(f"{where} is not a whole checkpoint: {key!r} is missing, or no mapping.")


def check_progress(progress: Mapping[str, Any], where: str) -> None:
    """Check the position of a run in its checkpoint.

    Raises:
        CheckpointError: naming the number that cannot be.
    """
    numbers = ("epoch", "batch", "step", "logged_until", "seconds")
    for name in numbers:
        value: Any = progress.get(name)
        whole = isinstance(value, int) or (name == "seconds" and isinstance(value, float) and isfinite(value))
        if not whole or isinstance(value, bool) or value < 0:
            raise CheckpointError(f"{where}: progress.{name}: expected a number of at least 0, found {value!r}.")
    threads = progress.get("threads", 1)
    known = {*numbers, "start", "scales", "threads", "machine"} >= set(progress)
    known = known and isinstance(progress.get("scales", ""), str)
    mappings = isinstance(progress.get("start"), Mapping) and isinstance(progress.get("machine", {}), Mapping)
    if not known or not mappings or isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise CheckpointError(f"{where}: progress does not say where the run was.")


class Randomness:
    """State of the global generators and of the loaders' own.

    Args:
        generators: the loaders' generators.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = list(generators)

    def state_dict(self) -> dict[str, Any]:
        """Return all states."""
        return {"global": random_state(), "loaders": [g.get_state() for g in self._generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all states."""
        if len(state["loaders"]) != len(self._generators):
            raise CheckpointError(
                f"the checkpoint was made with {len(state['loaders'])} generators of loaders, the loaders given have "
                f"{len(self._generators)}. Resume with the loaders that the run began with."
            )
        restore_random_state(state["global"])
        for generator, saved in zip(self._generators, state["loaders"], strict=True):
            generator.set_state(saved)
