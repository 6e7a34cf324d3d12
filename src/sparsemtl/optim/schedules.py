"""Learning-rate schedules by name, over a whole training: they step after every epoch, or after every training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR
from typing_extensions import Doc

from sparsemtl.errors import ConfigError, ParameterError, unknown_name
from sparsemtl.registry.parameters import Count, Default, Natural, NonNegative, Positive, Share
from sparsemtl.registry.registry import Registry

Scheduler = LRScheduler | ReduceLROnPlateau
_Warmup = Annotated[Natural, Doc("Epochs of a linear rise at the beginning; training steps with `per_step`.")]
_Floor = Annotated[NonNegative, Doc("Learning rate at the end.")]


class ScheduleOptions(TypedDict, total=False):
    """Options of every schedule."""

    per_step: Annotated[
        bool,
        Default(False),
        Doc("Step after every training step, in place of every epoch; the schedule then counts steps, not epochs."),
    ]


class Schedule:
    """A learning-rate schedule by name, over the whole training, however long that is.

    Args:
        name: name in `SCHEDULERS`.
        per_step: step after every training step, in place of every epoch. What the schedule counts is steps then.
        parameters: parameters of the schedule, such as `warmup`.

    Raises:
        ConfigError: if there is no such schedule, or it has no such parameter.

    Examples:
        >>> schedule = Schedule("cosine", per_step=True, warmup=100)  # a hundred training steps
    """

    def __init__(self, name: str, *, per_step: bool = False, **parameters: Any) -> None:
        known = SCHEDULERS.parameters(name)
        for parameter in parameters:
            if parameter not in known:
                raise ConfigError(f"schedule {name!r}: {unknown_name('parameter', parameter, known)}")
        self.name = name
        self.per_step = per_step
        self.parameters = parameters

    def __call__(self, optimizer: Optimizer, length: int) -> Scheduler:
        """Return the scheduler of an optimizer.

        Args:
            optimizer: the optimizer.
            length: epochs of the whole training, or its training steps with `per_step`.

        Raises:
            ConfigError: if a parameter has a value that the schedule refuses.
        """
        return SCHEDULERS.build(self.name, optimizer, length, **self.parameters)

    def described(self) -> dict[str, Any]:
        """Return the schedule as a configuration has it."""
        return {"name": self.name, "per_step": self.per_step, **self.parameters}


def constant(optimizer: Optimizer, length: int, *, warmup: _Warmup = 0) -> LRScheduler:
    """Keep the learning rate, after a linear rise of `warmup` epochs or steps."""
    return LambdaLR(optimizer, lambda count: min(1.0, (count + 1) / (warmup + 1)))


def cosine(optimizer: Optimizer, length: int, *, warmup: _Warmup = 0, floor: _Floor = 0.0) -> LRScheduler:
    """Lower the learning rate to `floor` along half a cosine, after a linear rise (Loshchilov & Hutter 2017).

    `floor` is that of the first parameter group; groups with another learning rate end at the same fraction of theirs.
    """
    if not warmup and (not floor or len({group["lr"] for group in optimizer.param_groups}) == 1):
        return CosineAnnealingLR(optimizer, T_max=length, eta_min=floor)
    return _falling(optimizer, length, warmup, floor, lambda done, steps: (1 + math.cos(math.pi * done / steps)) / 2)


def linear(optimizer: Optimizer, length: int, *, warmup: _Warmup = 0, floor: _Floor = 0.0) -> LRScheduler:
    """Lower the learning rate to `floor` along a line, after a linear rise (as transformers are fine-tuned).

    `floor` is that of the first parameter group, as for `cosine`.
    """
    return _falling(optimizer, length, warmup, floor, lambda done, steps: 1 - done / steps)


def _falling(
    optimizer: Optimizer, length: int, warmup: int, floor: float, left: Callable[[int, int], float]
) -> LRScheduler:
    """Return a schedule that rises over `warmup` steps, and then falls to `floor`.

    Args:
        optimizer: the optimizer.
        length: number of steps of the schedule.
        warmup: number of steps of the rise.
        floor: learning rate of the first group at the end.
        left: function of the steps of the fall that are done, and of all of them, that returns the fraction of the
            learning rate above `floor` that is left.
    """
    if warmup >= length:
        raise ParameterError(
            f"`warmup` must be shorter than the whole schedule, got {warmup} of {length}: epochs, or training steps "
            "with `per_step`."
        )
    end = floor / float(optimizer.param_groups[0]["lr"])

    def factor(count: int) -> float:
        if count < warmup:
            return (count + 1) / (warmup + 1)
        return end + (1 - end) * left(min(count, length) - warmup, length - warmup)

    return LambdaLR(optimizer, factor)


def step(
    optimizer: Optimizer,
    length: int,
    *,
    every: Annotated[Count, Doc("Epochs between two changes; training steps with `per_step`.")] = 30,
    factor: Annotated[Positive, Doc("Factor of the learning rate per change.")] = 0.1,
) -> LRScheduler:
    """Multiply the learning rate by `factor` every `every` epochs."""
    return StepLR(optimizer, step_size=every, gamma=factor)


def plateau(
    optimizer: Optimizer,
    length: int,
    *,
    patience: Annotated[Natural, Doc("Epochs without a better validation score before a change.")] = 5,
    factor: Annotated[Share, Doc("Factor of the learning rate per change.")] = 0.1,
) -> ReduceLROnPlateau:
    """Multiply the learning rate by `factor` after `patience` epochs without a better validation score."""
    return ReduceLROnPlateau(optimizer, "max", patience=patience, factor=factor, threshold=0.0, threshold_mode="abs")


SCHEDULERS: Registry[Scheduler] = Registry(
    "scheduler",
    {"constant": constant, "cosine": cosine, "linear": linear, "step": step, "plateau": plateau},
    common=ScheduleOptions,
)
