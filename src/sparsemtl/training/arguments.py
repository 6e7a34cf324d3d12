"""Checks of the arguments of trainers and steps: instances and functions where these are due."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from sparsemtl.errors import ParameterError
from sparsemtl.networks.model import MultiTaskModel
from sparsemtl.networks.task_networks import TaskNetworks
from sparsemtl.optim.schedules import Schedule
from sparsemtl.sharing import Sharing


def check_model(model: object) -> None:
    """Raise unless the argument is a multi-task model itself, not a wrapper."""
    if isinstance(model, MultiTaskModel):
        return
    found = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    inner = next((part for part in _wrapped(model) if isinstance(part, MultiTaskModel)), None)
    if inner is not None:
        advice = (
            f"It wraps a {type(inner).__name__}: pass that itself. Masks and statistics of tasks are put into the "
            "model at every step, which a compiled or replicated copy would not see."
        )
    elif isinstance(model, nn.Module):
        advice = "For one that tasks share, wrap it with its tasks: `sm.SharedBottom(encoder, tasks)`."
    else:
        advice = "Make one, such as `sm.SharedBottom(encoder, tasks)`."
    raise ParameterError(f"Trainer: `model` must be a MultiTaskModel, got {found}. {advice}")


def check_sharing(sharing: object) -> None:
    """Raise unless the argument is a sharing method, or None."""
    if sharing is not None and not isinstance(sharing, Sharing):
        advice = " `sm.auto_share` chooses among methods in Python." if sharing == "auto" else ""
        raise ParameterError(
            "Trainer: `sharing` must be a sharing method, such as `sm.FisherSharing(keep=0.3)`, got "
            f"{_shown(sharing)}.{advice}"
        )


def check_networks(networks: object) -> None:
    """Raise unless the argument is the networks of tasks."""
    if not isinstance(networks, TaskNetworks):
        raise ParameterError(
            "TrainingStep: `networks` must be TaskNetworks, such as `sharing.start(model)` or "
            f"`sm.TaskNetworks.of_masks(masks)`, got {_shown(networks)}."
        )


def check_maker(name: str, maker: object, kind: type | tuple[type, ...]) -> None:
    """Raise unless the argument makes or names an optimizer or a scheduler, is an optimizer, or is None."""
    if isinstance(maker, kind):
        if name == "optimizer":
            return
        raise ParameterError(
            f"Trainer: `{name}` must be a function that makes one, got the {type(maker).__name__} itself. It is made "
            "for the optimizer of each run: pass `lambda optimizer: ...` that returns it."
        )
    if maker is not None and not isinstance(maker, str) and not callable(maker):
        raise ParameterError(f"Trainer: `{name}` must be a function that makes one, got {_shown(maker)}.")


def schedule_every(schedule: Schedule, every: Literal["epoch", "step"]) -> Literal["epoch", "step"]:
    """Return when a schedule steps; raise if it says otherwise than the trainer's argument."""
    if every == "step" and not schedule.per_step:
        raise ParameterError(
            f"Trainer: scheduler_every='step', and the schedule {schedule.name!r} steps per epoch. Write "
            f"`sm.optim.Schedule({schedule.name!r}, per_step=True, ...)`, whose parameters count training steps."
        )
    return "step" if schedule.per_step else "epoch"


def check_epochs(sharing: Sharing, epochs: int, choose_after: int) -> None:
    """Raise unless some epoch may be selected."""
    if choose_after >= epochs:
        raise ParameterError(f"`choose_after` must leave an epoch to choose, got {choose_after} of {epochs} epochs.")
    if not sharing.is_selectable(epochs - 1):
        raise ParameterError(
            f"{type(sharing).__name__} would still be warming up when the {epochs} epochs end. "
            f"Raise `epochs` to at least {sharing.first_selectable() + 1}, or shorten the warm-up."
        )


def check_made(name: str, made: object, kind: type) -> None:
    """Raise unless a function returned an object of the expected class."""
    if not isinstance(made, kind):
        raise ParameterError(f"Trainer: `{name}` returned {_shown(made)}, expected a torch {name}.")


def _wrapped(model: object) -> list[Any]:
    """Return the modules inside the wrappers of torch.compile, DataParallel and their kin."""
    return [getattr(model, name, None) for name in ("_orig_mod", "module", "_forward_module")]


def _shown(value: object) -> str:
    return f"the class {value.__name__}: pass an instance" if isinstance(value, type) else repr(value)
