"""Everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from sparsemtl.errors import CheckpointError
from sparsemtl.randomness import random_state, restore_random_state

FORMAT = "sparsemtl-checkpoint-2"


class Stateful(Protocol):
    """Has a state that can be saved and put back."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: Any) -> Any:
        """Put it back."""


def fingerprint(model: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of a model's parameters, by which a checkpoint knows its model."""
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
    """Name of every part -> its class, by which a checkpoint knows its method, optimizer and schedule."""
    return {name: type(part).__name__ for name, part in parts.items()}


def snapshot(model: nn.Module, parts: Mapping[str, Stateful], progress: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run: model, named parts, progress."""
    return {
        "format": FORMAT,
        "fingerprint": fingerprint(model),
        "model": dict(model.state_dict()),
        "kinds": kinds(parts),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "progress": dict(progress),
    }


def restore(state: Mapping[str, Any], model: nn.Module, parts: Mapping[str, Stateful], where: str) -> dict[str, Any]:
    """Put a snapshot back; returns its progress.

    Raises:
        CheckpointError: if it is no checkpoint, or one of another model, method, optimizer or schedule.
    """
    found = state.get("format") if isinstance(state, Mapping) else None
    if found != FORMAT:
        raise CheckpointError(f"{where} is not a checkpoint of this version: format {found!r}.")
    check_fingerprint(state["fingerprint"], model, where)
    there, here = state["kinds"], kinds(parts)
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"{where} was made by another run: its {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here."
            )
    model.load_state_dict(state["model"])
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    progress: dict[str, Any] = state["progress"]
    return progress


class Randomness:
    """State of the global generators and of the loaders' own.

    Args:
        generators: the loaders' generators.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = list(generators)

    def state_dict(self) -> dict[str, Any]:
        """All states."""
        return {"global": random_state(), "loaders": [g.get_state() for g in self._generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        if len(state["loaders"]) != len(self._generators):
            raise CheckpointError(
                f"the checkpoint was made with {len(state['loaders'])} generators of loaders, the loaders given have "
                f"{len(self._generators)}. Resume with the loaders that the run began with."
            )
        restore_random_state(state["global"])
        for generator, saved in zip(self._generators, state["loaders"], strict=True):
            generator.set_state(saved)
